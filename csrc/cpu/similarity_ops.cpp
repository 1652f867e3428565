// fastssl::similarity_{fwd, one_pass, bwd} on the CPU: they turn tensors into problems and results into tensors. The schemas are in
// fastssl/ops/similarity.py.
#include <array>

#include "cpu/new_tensor.h"
#include "cpu/similarity_problem.h"

namespace fastssl::similarity {
namespace {

// Makes the forward problem of similarity_{fwd, one_pass}, calls run(problem, ranking), and returns the ranks.
template <class Run>
Tensor ranked(const Tensor& x, const OptTensor& y, double scale, const OptTensor& factor, const OptTensor& x_id,
              const OptTensor& y_id, const OptTensor& y_bias, const OptTensor& threshold, const Run& run) {
  Tensor rank = empty({threshold.has_value() ? x.size(0) : 0}, ScalarType::Int);
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    auto p = problem<E>(x, y, effective(scale, factor), x_id, y_id, y_bias);
    p.bounded = proved_bounded(p);
    if (!threshold.has_value()) return run(p, Ranking<T>{});
    p.bounded = p.bounded && !y_bias.has_value();  // bounded logits lack the bias, which the weights hold
    const Tensor bars = as_contiguous(as_dtype(*threshold, compute_dtype(x)));
    run(p, Ranking<T>{bars.const_data_ptr<T>(), rank.mutable_data_ptr<int32_t>()});
  });
  return rank;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_fwd(const Tensor& x, const OptTensor& y, double scale,
                                                          const OptTensor& factor, const OptTensor& x_id, const OptTensor& y_id,
                                                          const OptTensor& y_bias, const OptTensor& threshold) {
  const ScalarType wide = compute_dtype(x);
  Tensor lse = empty({x.size(0)}, wide), state = empty({2, x.size(0)}, wide);
  Tensor peak = empty({x.size(0)}, ScalarType::Int);
  const Tensor rank =
      ranked(x, y, scale, factor, x_id, y_id, y_bias, threshold, [&]<class E>(const Problem<E>& p, Ranking<Sum<E>> ranking) {
        forward(p, ranking, state_of<Sum<E>>(state, peak), lse.mutable_data_ptr<Sum<E>>());
      });
  return {lse, rank, state, peak};
}

std::tuple<Tensor, Tensor, Tensor> similarity_one_pass(const Tensor& x, const OptTensor& y, double scale, const OptTensor& factor,
                                                       const OptTensor& x_id, const OptTensor& y_id, const OptTensor& y_bias,
                                                       const OptTensor& threshold) {
  const ScalarType wide = compute_dtype(x);
  Tensor lse = empty({x.size(0)}, wide), mean = empty(x.sizes(), wide);
  const Tensor rank =
      ranked(x, y, scale, factor, x_id, y_id, y_bias, threshold, [&]<class E>(const Problem<E>& p, Ranking<Sum<E>> ranking) {
        one_pass(p, ranking, lse.mutable_data_ptr<Sum<E>>(), mean.mutable_data_ptr<Sum<E>>());
      });
  return {lse, mean, rank};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_bwd(const Tensor& dlse, const Tensor& state, const Tensor& peak,
                                                          const Tensor& x, const OptTensor& y, double scale,
                                                          const OptTensor& factor, const OptTensor& x_id, const OptTensor& y_id,
                                                          const OptTensor& y_bias, const std::vector<bool>& need) {
  const ScalarType wide = compute_dtype(x);
  const bool need_x = need[0], need_y = need[1], need_bias = need[2], need_scale = need[3];
  GradientSums gradients(x, y, effective(scale, factor), need_x, need_y, need_scale);
  Tensor dbias = need_bias && y_bias.has_value() ? zeros(y_bias->sizes(), wide) : empty({0}, wide);
  const Tensor g = as_contiguous(as_dtype(dlse, wide)), sums = as_contiguous(state), peaks = as_contiguous(peak);
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    auto p = problem<E>(x, y, gradients.scale, x_id, y_id, y_bias);
    const auto made = state_of<T>(sums, peaks);
    set_backward(p, made);
    const Gradients<T> out{data_or_null<T>(gradients.own), data_or_null<T>(gradients.other), data_or_null<T>(dbias),
                           T(gradients.factor())};
    backward(p, made, g.const_data_ptr<T>(), out);
    gradients.finish(p, !y.has_value());
  });
  if (y_bias.has_value()) dbias = as_dtype(dbias, y_bias->scalar_type());
  return {gradients.dx(), gradients.other, dbias, gradients.dscale};
}

}  // namespace
}  // namespace fastssl::similarity

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_fwd", TORCH_BOX(&fastssl::similarity::similarity_fwd));
  m.impl("similarity_one_pass", TORCH_BOX(&fastssl::similarity::similarity_one_pass));
  m.impl("similarity_bwd", TORCH_BOX(&fastssl::similarity::similarity_bwd));
}
