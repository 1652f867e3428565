// Rows of any float dtype as T, float or double, and sums over them, for one instruction set: what token_rows.inl and
// latent_rows.inl share. There is no include guard, since each inclusion makes new functions.

#define FASTSSL_FN static inline
#include "common/elements.h"
#undef FASTSSL_FN
#include "cpu/arrays.inl"
#include "cpu/lanes.h"

template <class T>
using LaneOf = std::conditional_t<std::is_same_v<T, float>, FloatLane, DoubleLane>;

// Elements i .. i + n of an array of any dtype as T: the elements themselves where they are T, else copies in `buffer`.
[[maybe_unused]] static const float* values_of(const Array& array, int64_t i, int n, float* buffer) {
  if (array.dtype != kFloat64) return widened(array, i, n, buffer);
  const double* from = static_cast<const double*>(at(array, i));
  for (int j = 0; j < n; j++) buffer[j] = float(from[j]);
  return buffer;
}
[[maybe_unused]] static const double* values_of(const Array& array, int64_t i, int n, double* buffer) {
  if (array.dtype == kFloat64) return static_cast<const double*>(at(array, i));
  float narrow[kBlock];
  const float* from = widened(array, i, n, narrow);
  for (int j = 0; j < n; j++) buffer[j] = from[j];
  return buffer;
}

[[maybe_unused]] static void store_values(const float* values, const Array& array, int64_t i, int n) {
  if (array.dtype != kFloat64) return narrowed(values, array, i, n);
  double* to = static_cast<double*>(at(array, i));
  for (int j = 0; j < n; j++) to[j] = values[j];
}
[[maybe_unused]] static void store_values(const double* values, const Array& array, int64_t i, int n) {
  if (array.dtype == kFloat64) {
    if (values != at(array, i)) __builtin_memcpy(at(array, i), values, n * sizeof(double));
    return;
  }
  float narrow[kBlock];
  for (int j = 0; j < n; j++) narrow[j] = float(values[j]);
  narrowed(narrow, array, i, n);
}

// Calls f(first, count) for the blocks of n elements.
template <class F>
static inline __attribute__((always_inline)) void for_each_block(int64_t n, const F& f) {
  for (int64_t first = 0; first < n; first += kBlock) f(first, int(n - first < kBlock ? n - first : kBlock));
}

// The sum of f(x_e) over a row: side by side in the entries of four registers, which are then added in a fixed order.
template <class T, class F>
static inline __attribute__((always_inline)) T sum_over(int64_t n, const F& f) {
  using L = LaneOf<T>;
  constexpr int W = L::W, kParts = 4;
  typename L::V part[kParts];
  for (int p = 0; p < kParts; p++) part[p] = L::all(T(0));
  int64_t e = 0;
  for (; e + kParts * W <= n; e += kParts * W)
    for (int r = 0; r < kParts; r++) part[r] += f.many(e + r * W);
  T rest = 0;
  for (; e < n; e++) rest += f.one(e);
  return L::sum((part[0] + part[1]) + (part[2] + part[3])) + rest;
}

template <class T>
struct Values {
  const T* x;
  auto many(int64_t e) const { return LaneOf<T>::load(x + e); }
  T one(int64_t e) const { return x[e]; }
};
template <class T>
struct SquaredDistances {
  const T* x;
  T mean;
  auto many(int64_t e) const {
    const auto d = LaneOf<T>::load(x + e) - LaneOf<T>::all(mean);
    return d * d;
  }
  T one(int64_t e) const { return (x[e] - mean) * (x[e] - mean); }
};
