// Makes similarity problems from tensors, for all ops on a similarity matrix. The inputs were checked in Python.
// bfloat16 is multiplied as it is where the CPU can do so. Otherwise 16-bit rows of x are widened once, those of y as they are
// packed.
#pragma once
#include <cmath>
#include <optional>

#include "cpu/new_tensor.h"
#include "cpu/similarity.h"

namespace fastssl::similarity {

using OptTensor = std::optional<Tensor>;

// The largest |logit| that the bounded element functions take, in nats. Sums of e^22 and weights of e^-22 stay far inside float
// range. In base 2 such logits are below 32, so their last bit is at most 2^-19. Where the backward's product gives a logit other
// bits than the forward's, the weight is off by 1.3e-6 for each unit in the last place, and no maximum would correct it.
constexpr double kBound = 22.0;

inline ScalarType compute_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Whether the rows of x are dense along D. A dimension of one entry may have any stride, which contiguous() does not change.
inline bool has_rows(const Tensor& x) {
  return (x.size(1) == 1 || x.stride(1) == 1) && (x.size(0) == 1 || x.stride(0) >= x.size(1));
}

// x with dense rows or dense columns, the latter as in a queue stored (D, rows).
inline bool has_columns(const Tensor& x) {
  return (x.size(0) == 1 || x.stride(0) == 1) && (x.size(1) == 1 || x.stride(1) >= x.size(0));
}

inline Tensor as_dense(const Tensor& x) { return has_rows(x) || has_columns(x) ? x : as_contiguous(x); }

inline StoredRows rows_of(const Tensor& x) {
  const bool rows = has_rows(x);
  const int outer = rows ? 0 : 1;
  const int64_t ld = x.size(outer) == 1 ? x.size(1 - outer) : x.stride(outer);
  return {array_of(x), x.size(0), rows ? ld : 1, rows ? 1 : ld};
}

// x with dense rows of elements E, an even number of them where E is multiplied in pairs.
template <class E>
Tensor as_left(const Tensor& x) {
  const Tensor same = as_dtype(x, kScalarType<E>);
  const int64_t D = x.size(1), whole = (D + kTerms<E> - 1) / kTerms<E> * kTerms<E>;
  if (whole == D) return has_rows(same) ? same : as_contiguous(same);
  const Tensor dense = as_contiguous(same), padded = empty({x.size(0), whole}, same.scalar_type());
  const E* from = dense.const_data_ptr<E>();
  E* to = padded.mutable_data_ptr<E>();
  for (int64_t i = 0; i < x.size(0); i++) std::fill(std::copy_n(from + i * D, D, to + i * whole), to + (i + 1) * whole, E(0));
  return narrowed(padded, 1, 0, D);
}

inline std::vector<int32_t> to_int32(const Tensor& id) {  // padded; empty if an id does not fit
  std::vector<int32_t> out(id.numel() + kPad, 0);
  if (id.scalar_type() != ScalarType::Long) {
    const Tensor narrow = as_contiguous(as_dtype(id, ScalarType::Int));
    std::copy_n(narrow.const_data_ptr<int32_t>(), id.numel(), out.begin());
    return out;
  }
  const Tensor wide = as_contiguous(id);
  const int64_t* from = wide.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < wide.numel(); i++) {
    out[i] = int32_t(from[i]);
    if (out[i] != from[i]) return {};
  }
  return out;
}

// 32-bit ids that are equal exactly where the given ones are: the given ids themselves, or their ranks if these need 64 bits.
inline void set_ids(std::vector<int32_t>& x_id, std::vector<int32_t>& y_id, const Tensor& x_given, const Tensor& y_given) {
  x_id = to_int32(x_given);
  y_id = to_int32(y_given);
  if (!x_id.empty() && !y_id.empty()) return;
  std::vector<int64_t> known;
  for (const Tensor* given : {&x_given, &y_given}) {
    const Tensor wide = as_contiguous(as_dtype(*given, ScalarType::Long));
    known.insert(known.end(), wide.const_data_ptr<int64_t>(), wide.const_data_ptr<int64_t>() + wide.numel());
  }
  const std::vector<int64_t> ids = known;
  std::sort(known.begin(), known.end());
  const auto rank = [&](int64_t id) { return int32_t(std::lower_bound(known.begin(), known.end(), id) - known.begin()); };
  const auto of_y = ids.begin() + x_given.numel();
  x_id.assign(x_given.numel() + kPad, 0), y_id.assign(y_given.numel() + kPad, 0);
  std::transform(ids.begin(), of_y, x_id.begin(), rank), std::transform(of_y, ids.end(), y_id.begin(), rank);
}

// The larger one, or NaN if one is NaN. A NaN is not below any bound.
inline double larger(double a, double b) { return b > a || std::isnan(b) ? b : a; }

template <class T>
double longest_row(const StoredRows& side, int D) {
  const auto& f = rows<T>();
  const double square = parallel_reduce(
      side.rows, D / 4, 0.0,
      [&](int64_t begin, int64_t end, double longest) {
        if (side.entry != 1) {
          std::vector<T> squares(end - begin, T(0));
          for (int64_t d = 0; d < D; d++) f.add_squares(side.array, begin + d * side.entry, int(end - begin), squares.data());
          for (T square : squares) longest = larger(longest, square);
          return longest;
        }
        for (int64_t i = begin; i < end; i++) longest = larger(longest, f.dot_with(side.array, i * side.row, nullptr, D));
        return longest;
      },
      larger);
  return std::sqrt(square);
}

template <class E>
Problem<E> problem(const Tensor& x, const OptTensor& y, double scale, const OptTensor& x_id, const OptTensor& y_id,
                   const OptTensor& y_bias) {
  using T = Sum<E>;
  Problem<E> p;
  p.symmetric = !y.has_value();
  const Tensor x_rows = as_left<E>(x), y_rows = p.symmetric ? x_rows : as_dense(as_dtype(*y, x.scalar_type()));
  p.keep = {x_rows, y_rows};
  p.D = int(x.size(1));
  p.scale = scale;
  p.x.stored = rows_of(x_rows);
  p.y.stored = rows_of(y_rows);
  if (x_id.has_value()) set_ids(p.x.id, p.y.id, *x_id, y_id.has_value() ? *y_id : *x_id);
  p.x.weight.assign(p.x.rows() + kPad, T(1));
  p.y.weight.assign(p.y.rows() + kPad, T(1));
  if (y_bias.has_value()) {
    const Tensor given = as_contiguous(as_dtype(*y_bias, compute_dtype(x)));
    const T* of = given.const_data_ptr<T>();
    p.y.bias.assign(p.y.rows() + kPad, T(0));
    for (int64_t j = 0; j < p.y.rows(); j++) {
      const T bias = of[j];
      p.y.bias[j] = bias;
      p.y.weight[j] = std::exp(bias);
    }
    if (p.symmetric) p.x.weight = p.y.weight;
  }
  return p;
}

// Whether every logit lies within +-kBound, by Cauchy-Schwarz. Only a forward asks; set_backward() sees what it found.
template <class E>
bool proved_bounded(const Problem<E>& p) {
  using T = Sum<E>;
  double largest_bias = 0;
  for (T bias : p.y.bias) largest_bias = larger(largest_bias, std::abs(double(bias)));
  const double longest_x = longest_row<T>(p.x.stored, p.D), longest_y = p.symmetric ? longest_x : longest_row<T>(p.y.stored, p.D);
  return std::abs(p.scale) * longest_x * longest_y + largest_bias <= kBound;
}

// Turns p into the problem of a backward, which is bounded where its forward was: a bounded forward leaves a maximum of 0 and no
// peak, whereas an online row with a maximum of 0 has a peak.
template <class E>
void set_backward(Problem<E>& p, const State<Sum<E>>& state) {
  p.backward = true;
  p.bounded = state.top[0] == 0 && state.peak[0] < 0;
}

// Calls f with a value of the type whose products are taken. float16 and, without an instruction for it, bfloat16 become float.
template <class F>
auto dispatch(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Double) return f(double());
  return x.scalar_type() == ScalarType::BFloat16 && has_bfloat16_products() ? f(BFloat16()) : f(float());
}

// The largest length of a row brought to unit length, whose norm, quotients and elements E are rounded.
template <class E>
constexpr double kLongestUnit = kTerms<E> == 2 ? 1.004 : 1.001;

inline double effective(double scale, const OptTensor& factor) { return factor.has_value() ? scale * as_double(*factor) : scale; }

// <x, own> summed over all rows, in a fixed order.
template <class E>
Sum<E> scale_gradient(const Problem<E>& p, const Sum<E>* own) {
  const StoredRows& x = p.x.stored;
  Sum<E> sum = 0;
  for (int64_t i = 0; i < x.rows; i++) sum += rows<Sum<E>>().dot_with(x.array, i * x.row, own + i * p.D, p.D);
  return sum;
}

// The State that lies in the tensors state (2, N), which holds maxima and sums, and peak (N,).
template <class T>
State<T> state_of(const Tensor& state, const Tensor& peak) {
  T* data = const_cast<T*>(state.const_data_ptr<T>());
  return {{data, data + state.size(1), const_cast<int32_t*>(peak.const_data_ptr<int32_t>())}};
}

// The data of a tensor, or null where it has no elements.
template <class T>
T* data_or_null(Tensor& t) {
  return t.numel() ? t.mutable_data_ptr<T>() : nullptr;
}

// The sums for the gradients of x, y and the scale while a kernel adds them up. A tensor without elements is not wanted.
struct GradientSums {
  Tensor own, other, dscale;  // of x, y and the scale, in the dtype that sums are kept in
  double scale;
  bool need_x, need_scale;

  GradientSums(const Tensor& x, const OptTensor& y, double scale, bool need_x, bool need_y, bool need_scale)
      : scale(scale), need_x(need_x), need_scale(need_scale) {
    const ScalarType wide = compute_dtype(x);
    own = need_x || need_scale ? zeros(x.sizes(), wide) : empty({0}, wide);
    other = need_y && y.has_value() ? zeros(y->sizes(), wide) : empty({0}, wide);
    dscale = need_scale ? empty({}, wide) : empty({0}, wide);
  }

  // The factor by which the kernel multiplies the sums: the scale, or 1 if the gradient of the scale needs the plain sums.
  double factor() const { return need_scale ? 1.0 : scale; }

  // Computes the gradient of the scale and then multiplies the sums by the scale. Where y is x, `own` holds the sums of both roles
  // of each row, so that the gradient is counted twice.
  template <class E>
  void finish(const Problem<E>& p, bool symmetric) {
    using T = Sum<E>;
    if (!need_scale) return;
    const T total = scale_gradient(p, own.const_data_ptr<T>());
    *dscale.mutable_data_ptr<T>() = symmetric ? total / 2 : total;
    for (const Tensor* sums : {&own, &other}) {
      T* all = sums->mutable_data_ptr<T>();
      parallel_for(sums->numel(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) all[i] *= T(scale);
      });
    }
  }

  Tensor dx() const { return need_x ? own : empty({0}, own.scalar_type()); }
};

}  // namespace fastssl::similarity
