// The functions of token_rows.h for one instruction set, compiled by each_isa.h.

#define FASTSSL_FN static inline
#include "common/elements.h"
#undef FASTSSL_FN
#include "cpu/arrays.inl"
#include "cpu/lanes.h"

template <class T>
using LaneOf = std::conditional_t<std::is_same_v<T, float>, FloatLane, DoubleLane>;

// Elements i .. i + n of an array of any dtype as T: the elements themselves where they are T, else copies in `buffer`.
static const float* values_of(const Array& array, int64_t i, int n, float* buffer) {
  if (array.dtype != kFloat64) return widened(array, i, n, buffer);
  const double* from = static_cast<const double*>(at(array, i));
  for (int j = 0; j < n; j++) buffer[j] = float(from[j]);
  return buffer;
}
static const double* values_of(const Array& array, int64_t i, int n, double* buffer) {
  if (array.dtype == kFloat64) return static_cast<const double*>(at(array, i));
  float narrow[kBlock];
  const float* from = widened(array, i, n, narrow);
  for (int j = 0; j < n; j++) buffer[j] = from[j];
  return buffer;
}

static void store_values(const float* values, const Array& array, int64_t i, int n) {
  if (array.dtype != kFloat64) return narrowed(values, array, i, n);
  double* to = static_cast<double*>(at(array, i));
  for (int j = 0; j < n; j++) to[j] = values[j];
}
static void store_values(const double* values, const Array& array, int64_t i, int n) {
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

template <class T>
static void copy_row(Array from, int64_t i, Array to, int64_t j, int64_t n) {
  if (from.dtype == to.dtype) {
    __builtin_memcpy(at(to, j), at(from, i), n * bytes_of(to.dtype));
    return;
  }
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock];
    store_values(values_of(from, i + first, count, buffer), to, j + first, count);
  });
}

template <class T>
static void add_rows(Array a, int64_t i, Array b, int64_t j, Array to, int64_t k, int64_t n) {
  constexpr Dtype dtype_of_sums = std::is_same_v<T, float> ? kFloat32 : kFloat64;
  for_each_block(n, [&](int64_t first, int count) {
    T a_buffer[kBlock], b_buffer[kBlock], sum_buffer[kBlock];
    const T* x = values_of(a, i + first, count, a_buffer);
    const T* y = values_of(b, j + first, count, b_buffer);
    T* sum = to.dtype == dtype_of_sums ? static_cast<T*>(at(to, k + first)) : sum_buffer;
    for (int e = 0; e < count; e++) sum[e] = x[e] + y[e];
    store_values(sum, to, k + first, count);
  });
}

template <class T>
static void accumulate_row(Array row, int64_t i, int64_t n, T* sum) {
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock];
    const T* x = values_of(row, i + first, count, buffer);
    for (int e = 0; e < count; e++) sum[first + e] += x[e];
  });
}

// Puts a run of `count` pixels of each of `channels` planes into its places of a patch. Three channels in the order (p, q, c) have
// a separate loop, which compilers turn into shuffles.
template <class T>
static inline __attribute__((always_inline)) void place_runs(const T* run, int64_t plane, int64_t first, int64_t count,
                                                             const PatchShape& shape, T* out) {
  const int64_t channels = shape.channels, size = shape.height * shape.width;
  if (shape.channels_last && channels == 3) {
    const T *red = run, *green = run + plane, *blue = run + 2 * plane;
    T* to = out + 3 * first;
    for (int64_t q = 0; q < count; q++) to[3 * q] = red[q], to[3 * q + 1] = green[q], to[3 * q + 2] = blue[q];
    return;
  }
  for (int64_t c = 0; c < channels; c++) {
    const T* from = run + c * plane;
    if (shape.channels_last) {
      for (int64_t q = 0; q < count; q++) out[(first + q) * channels + c] = from[q];
      continue;
    }
    using L = LaneOf<T>;
    T* to = out + c * size + first;
    int64_t q = 0;
    for (; q + L::W <= count; q += L::W) L::store(to + q, L::load(from + q));
    for (; q < count; q++) to[q] = from[q];
  }
}

template <class T>
static void read_patch(Array images, int64_t begin, const PatchShape& shape, T* out) {
  if (images.dtype == (std::is_same_v<T, float> ? kFloat32 : kFloat64)) {
    const T* pixels = static_cast<const T*>(at(images, begin));
    for (int64_t p = 0; p < shape.height; p++)
      place_runs(pixels + p * shape.row, shape.plane, p * shape.width, shape.width, shape, out);
    return;
  }
  for (int64_t c = 0; c < shape.channels; c++)
    for (int64_t p = 0; p < shape.height; p++)
      for_each_block(shape.width, [&](int64_t first, int count) {
        T buffer[kBlock];
        const T* run = values_of(images, begin + c * shape.plane + p * shape.row + first, count, buffer);
        const int64_t place = p * shape.width + first, size = shape.height * shape.width;
        if (shape.channels_last)
          for (int q = 0; q < count; q++) out[(place + q) * shape.channels + c] = run[q];
        else
          for (int q = 0; q < count; q++) out[c * size + place + q] = run[q];
      });
}

// The sum of f(x_e) over a row: side by side in the entries of four registers, which are then added in a fixed order.
template <class T, class F>
static inline __attribute__((always_inline)) T sum_over(int64_t n, const F& f) {
  using L = LaneOf<T>;
  constexpr int W = L::W, kParts = 4;
  typename L::V part[kParts];
  for (auto& each : part) each = L::all(T(0));
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
template <class T>
struct Errors {
  const T *pred, *target;
  Scaling<T> s;
  bool absolute;
  auto many(int64_t e) const {
    using L = LaneOf<T>;
    const auto d = L::load(pred + e) - (L::load(target + e) - L::all(s.mean)) * L::all(s.scale);
    return absolute ? L::max(d, -d) : d * d;
  }
  T one(int64_t e) const {
    const T d = pred[e] - (target[e] - s.mean) * s.scale;
    return absolute ? (d > 0 ? d : -d) : d * d;
  }
};

template <class T>
static Scaling<T> scaling(const T* target, int64_t n, double eps) {
  const T mean = sum_over<T>(n, Values<T>{target}) / T(n);
  const T variance = sum_over<T>(n, SquaredDistances<T>{target, mean}) / T(n - 1);
  return {mean, T(1) / std::sqrt(variance + T(eps))};
}

template <class T>
static double error(Array pred, int64_t i, int64_t n, const T* target, Scaling<T> s, bool absolute) {
  double sum = 0;
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock];
    sum += sum_over<T>(count, Errors<T>{values_of(pred, i + first, count, buffer), target + first, s, absolute});
  });
  return sum;
}

template <class T>
static void slope(Array pred, int64_t i, int64_t n, const T* target, Scaling<T> s, bool absolute, T size, Array out, int64_t j) {
  constexpr Dtype dtype_of_sums = std::is_same_v<T, float> ? kFloat32 : kFloat64;
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock], result_buffer[kBlock];
    const T *x = values_of(pred, i + first, count, buffer), *t = target + first;
    T* result = out.dtype == dtype_of_sums ? static_cast<T*>(at(out, j + first)) : result_buffer;
    if (absolute)
      for (int e = 0; e < count; e++) {
        const T d = x[e] - (t[e] - s.mean) * s.scale;
        result[e] = d > 0 ? size : d < 0 ? -size : d;  // d itself: 0, or NaN
      }
    else
      for (int e = 0; e < count; e++) result[e] = (x[e] - (t[e] - s.mean) * s.scale) * size;
    store_values(result, out, j + first, count);
  });
}

template <class T>
static constexpr TokenRows<T> rows_of = {copy_row<T>, add_rows<T>, accumulate_row<T>, read_patch<T>,
                                         scaling<T>,  error<T>,    slope<T>};

static const TokenRows<float>& float_rows = rows_of<float>;
static const TokenRows<double>& double_rows = rows_of<double>;
