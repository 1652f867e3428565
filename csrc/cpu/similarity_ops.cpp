// fastssl::similarity_{fwd, one_pass, bwd} for the CPU key: tensors to problems and back. Schemas: fastssl/ops/similarity.py.
// 16-bit inputs are widened once, O((N + M) D), and computed in float32. Inputs were checked in Python.
#include <ATen/ops/empty.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "cpu/similarity.h"

namespace fastssl::similarity {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// |logits| that the bounded element functions take, in nats: sums of e^40 and weights of e^-40 stay far inside float range.
constexpr double kBound = 40.0;

at::ScalarType compute_dtype(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// In the compute dtype, unit stride along D and a row stride that BLAS takes.
Tensor as_rows(const Tensor& x) {
  const Tensor wide = x.to(compute_dtype(x));
  const bool fits = wide.stride(1) == 1 && wide.stride(0) >= wide.size(1) && wide.stride(0) <= std::numeric_limits<int>::max();
  return fits ? wide : wide.contiguous();
}

int row_stride(const Tensor& x) { return int(x.size(0) == 1 ? x.size(1) : x.stride(0)); }

std::vector<int32_t> to_int32(const Tensor& id) {  // padded; empty if an id does not fit
  std::vector<int32_t> out(id.numel() + kPad, 0);
  if (id.scalar_type() != at::kLong) {
    const Tensor narrow = id.to(at::kInt).contiguous();
    std::copy_n(narrow.const_data_ptr<int32_t>(), id.numel(), out.begin());
    return out;
  }
  const Tensor wide = id.contiguous();
  const int64_t* from = wide.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < wide.numel(); i++) {
    out[i] = int32_t(from[i]);
    if (out[i] != from[i]) return {};
  }
  return out;
}

// Ids as 32-bit integers that are equal exactly where the given ones are: themselves, or their ranks if they need 64 bits.
void set_ids(std::vector<int32_t>& x_id, std::vector<int32_t>& y_id, const Tensor& x_given, const Tensor& y_given) {
  x_id = to_int32(x_given);
  y_id = to_int32(y_given);
  if (!x_id.empty() && !y_id.empty()) return;
  const Tensor ranks = std::get<1>(at::_unique2(at::cat({x_given.to(at::kLong), y_given.to(at::kLong)}), true, true));
  x_id = to_int32(ranks.narrow(0, 0, x_given.numel()));
  y_id = to_int32(ranks.narrow(0, x_given.numel(), y_given.numel()));
}

// The larger one; a NaN stays, and is then not bounded.
double larger(double a, double b) { return b > a || std::isnan(b) ? b : a; }

template <class T>
double longest_row(const Side<T>& side, int D) {
  const auto& f = rows<T>();
  const double square = at::parallel_reduce(
      0, side.rows, 1 + (1 << 16) / D, 0.0,
      [&](int64_t begin, int64_t end, double longest) {
        for (int64_t i = begin; i < end; i++) longest = larger(longest, f.dot(side.row(i), side.row(i), D));
        return longest;
      },
      larger);
  return std::sqrt(square);
}

template <class T>
Problem<T> problem(const Tensor& x, const OptTensor& y, double scale, const OptTensor& x_id, const OptTensor& y_id,
                   const OptTensor& y_bias) {
  Problem<T> p;
  p.symmetric = !y.has_value();
  const Tensor x_rows = as_rows(x), y_rows = p.symmetric ? x_rows : as_rows(*y);
  p.keep = {x_rows, y_rows};
  p.D = int(x.size(1));
  p.scale = scale;
  p.x = {x_rows.const_data_ptr<T>(), x_rows.size(0), row_stride(x_rows), {}, {}, {}};
  p.y = {y_rows.const_data_ptr<T>(), y_rows.size(0), row_stride(y_rows), {}, {}, {}};
  if (x_id.has_value()) set_ids(p.x.id, p.y.id, *x_id, y_id.has_value() ? *y_id : *x_id);
  p.x.weight.assign(p.x.rows + kPad, T(1));
  p.y.weight.assign(p.y.rows + kPad, T(1));
  double largest_bias = 0;
  if (y_bias.has_value()) {
    const Tensor given = y_bias->to(compute_dtype(x)).contiguous();
    p.y.bias.assign(p.y.rows + kPad, T(0));
    for (int64_t j = 0; j < p.y.rows; j++) {
      const T bias = given.const_data_ptr<T>()[j];
      largest_bias = larger(largest_bias, std::abs(double(bias)));
      p.y.bias[j] = bias;
      p.y.weight[j] = std::exp(bias);
    }
    if (p.symmetric) p.x.weight = p.y.weight;
  }
  const double longest_x = longest_row(p.x, p.D), longest_y = p.symmetric ? longest_x : longest_row(p.y, p.D);
  p.bounded = std::abs(scale) * longest_x * longest_y + largest_bias <= kBound;
  return p;
}

template <class F>
auto dispatch(const Tensor& x, const F& f) {
  return x.scalar_type() == at::kDouble ? f(double()) : f(float());
}

double effective(double scale, const OptTensor& factor) { return factor.has_value() ? scale * factor->item<double>() : scale; }

Tensor similarity_fwd(const Tensor& x, const OptTensor& y, double scale, const OptTensor& factor, const OptTensor& x_id,
                      const OptTensor& y_id, const OptTensor& y_bias) {
  Tensor lse = at::empty({x.size(0)}, x.options().dtype(compute_dtype(x)));
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    forward(problem<T>(x, y, effective(scale, factor), x_id, y_id, y_bias), lse.mutable_data_ptr<T>());
  });
  return lse;
}

std::tuple<Tensor, Tensor> similarity_one_pass(const Tensor& x, const OptTensor& y, double scale, const OptTensor& factor,
                                               const OptTensor& x_id, const OptTensor& y_id, const OptTensor& y_bias) {
  const auto options = x.options().dtype(compute_dtype(x));
  Tensor lse = at::empty({x.size(0)}, options), mean = at::empty(x.sizes(), options);
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    one_pass(problem<T>(x, y, effective(scale, factor), x_id, y_id, y_bias), lse.mutable_data_ptr<T>(), mean.mutable_data_ptr<T>());
  });
  return {lse, mean};
}

// <x, own> summed over all rows, in a fixed order.
template <class T>
T scale_gradient(const Problem<T>& p, const T* own) {
  T sum = 0;
  for (int64_t i = 0; i < p.x.rows; i++) sum += rows<T>().dot(p.x.row(i), own + i * p.D, p.D);
  return sum;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_bwd(const Tensor& dlse, const Tensor& lse, const Tensor& x,
                                                          const OptTensor& y, double scale, const OptTensor& factor,
                                                          const OptTensor& x_id, const OptTensor& y_id, const OptTensor& y_bias,
                                                          std::array<bool, 4> need) {
  const auto options = x.options().dtype(compute_dtype(x));
  const auto [need_x, need_y, need_bias, need_scale] = need;
  const bool symmetric = !y.has_value(), with_bias = need_bias && y_bias.has_value();
  const double s = effective(scale, factor);  // multiplied into the sums at once, except where its own gradient needs them bare
  Tensor own = need_x || need_scale ? at::zeros(x.sizes(), options) : at::empty({0}, options);
  Tensor other = (!symmetric && need_y) ? at::zeros(y->sizes(), options) : at::empty({0}, options);
  Tensor dbias = with_bias ? at::zeros(y_bias->sizes(), options) : at::empty({0}, options);
  Tensor dscale = need_scale ? at::empty({}, options) : at::empty({0}, options);
  const Tensor g = dlse.to(options.dtype()).contiguous(), top = lse.contiguous();
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    const auto p = problem<T>(x, y, s, x_id, y_id, y_bias);
    auto data = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr<T>() : nullptr; };
    const Gradients<T> out{data(own), data(other), data(dbias), T(need_scale ? 1.0 : s)};
    backward(p, top.const_data_ptr<T>(), g.const_data_ptr<T>(), out);
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
