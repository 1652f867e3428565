// fastssl::similarity_{fwd, one_pass, bwd} for the CPU key: tensors to problems and back. Schemas: fastssl/ops/similarity.py.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>

#include "cpu/new_tensor.h"
#include "cpu/similarity_problem.h"

namespace fastssl::similarity {
namespace {

// The forward problem of similarity_{fwd, one_pass}, and run(problem, ranking) on it; returns the ranks.
template <class Run>
Tensor ranked(const Tensor& x, const OptTensor& y, double scale, const OptTensor& factor, const OptTensor& x_id,
              const OptTensor& y_id, const OptTensor& y_bias, const OptTensor& threshold, const Run& run) {
  Tensor rank = at::empty({threshold.has_value() ? x.size(0) : 0}, x.options().dtype(at::kInt));
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    auto p = problem<T>(x, y, effective(scale, factor), x_id, y_id, y_bias, true);
    p.bounded = proved_bounded(p);
    if (!threshold.has_value()) return run(p, Ranking<T>{});
    p.bounded = p.bounded && !y_bias.has_value();  // bounded logits leave the bias to the weights
    const Tensor bars = threshold->to(compute_dtype(x)).contiguous();
    run(p, Ranking<T>{bars.const_data_ptr<T>(), rank.mutable_data_ptr<int32_t>()});
  });
  return rank;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_fwd(const Tensor& x, const OptTensor& y, double scale,
                                                          const OptTensor& factor, const OptTensor& x_id, const OptTensor& y_id,
                                                          const OptTensor& y_bias, const OptTensor& threshold) {
  const auto options = x.options().dtype(compute_dtype(x));
  Tensor lse = at::empty({x.size(0)}, options), state = at::empty({2, x.size(0)}, options);
  Tensor peak = at::empty({x.size(0)}, x.options().dtype(at::kInt));
  const Tensor rank =
      ranked(x, y, scale, factor, x_id, y_id, y_bias, threshold, [&]<class T>(const Problem<T>& p, Ranking<T> ranking) {
        forward(p, ranking, state_of<T>(state, peak), lse.mutable_data_ptr<T>());
      });
  return {lse, rank, state, peak};
}

std::tuple<Tensor, Tensor, Tensor> similarity_one_pass(const Tensor& x, const OptTensor& y, double scale, const OptTensor& factor,
                                                       const OptTensor& x_id, const OptTensor& y_id, const OptTensor& y_bias,
                                                       const OptTensor& threshold) {
  const auto options = x.options().dtype(compute_dtype(x));
  Tensor lse = at::empty({x.size(0)}, options), mean = at::empty(x.sizes(), options);
  const Tensor rank =
      ranked(x, y, scale, factor, x_id, y_id, y_bias, threshold, [&]<class T>(const Problem<T>& p, Ranking<T> ranking) {
        one_pass(p, ranking, lse.mutable_data_ptr<T>(), mean.mutable_data_ptr<T>());
      });
  return {lse, mean, rank};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_bwd(const Tensor& dlse, const Tensor& state, const Tensor& peak,
                                                          const Tensor& x, const OptTensor& y, double scale,
                                                          const OptTensor& factor, const OptTensor& x_id, const OptTensor& y_id,
                                                          const OptTensor& y_bias, std::array<bool, 4> need) {
  const auto options = x.options().dtype(compute_dtype(x));
  const auto [need_x, need_y, need_bias, need_scale] = need;
  const bool symmetric = !y.has_value(), with_bias = need_bias && y_bias.has_value();
  const double s = effective(scale, factor);  // multiplied into the sums at once, except where its own gradient needs them bare
  Tensor own = need_x || need_scale ? zeros(x.sizes(), options) : at::empty({0}, options);
  Tensor other = (!symmetric && need_y) ? zeros(y->sizes(), options) : at::empty({0}, options);
  Tensor dbias = with_bias ? zeros(y_bias->sizes(), options) : at::empty({0}, options);
  Tensor dscale = need_scale ? at::empty({}, options) : at::empty({0}, options);
  const Tensor g = dlse.to(options.dtype()).contiguous(), sums = state.contiguous(), peaks = peak.contiguous();
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    auto p = problem<T>(x, y, s, x_id, y_id, y_bias);
    const auto made = state_of<T>(sums, peaks);
    set_backward(p, made);
    const Gradients<T> out{data_or_null<T>(own), data_or_null<T>(other), data_or_null<T>(dbias), T(need_scale ? 1.0 : s)};
    backward(p, made, g.const_data_ptr<T>(), out);
    if (!need_scale) return;
    const T total = scale_gradient(p, own.const_data_ptr<T>());
    *dscale.mutable_data_ptr<T>() = symmetric ? total / 2 : total;  // symmetric: own holds both roles of each row
    own.mul_(s);
    other.mul_(s);
  });
  Tensor dx = need_x ? own.to(x.scalar_type()) : at::empty({0}, x.options());
  Tensor dy = !symmetric && need_y ? other.to(x.scalar_type()) : at::empty({0}, x.options());
  if (y_bias.has_value()) dbias = dbias.to(y_bias->scalar_type());
  return {dx, dy, dbias, dscale};
}

}  // namespace
}  // namespace fastssl::similarity

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_fwd", &fastssl::similarity::similarity_fwd);
  m.impl("similarity_one_pass", &fastssl::similarity::similarity_one_pass);
  m.impl("similarity_bwd", &fastssl::similarity::similarity_bwd);
}
