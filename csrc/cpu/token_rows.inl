// The functions of token_rows.h for one instruction set, compiled by each_isa.h.

#include "cpu/row_values.inl"

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

#if defined(__x86_64__)
#if FASTSSL_WIDTH == 16
using Register = __m512i;
static inline void store_past_caches(char* to, Register bytes) { _mm512_stream_si512(reinterpret_cast<Register*>(to), bytes); }
#elif FASTSSL_WIDTH == 8
using Register = __m256i;
static inline void store_past_caches(char* to, Register bytes) { _mm256_stream_si256(reinterpret_cast<Register*>(to), bytes); }
#else
using Register = __m128i;
static inline void store_past_caches(char* to, Register bytes) { _mm_stream_si128(reinterpret_cast<Register*>(to), bytes); }
#endif
constexpr int64_t kRegister = sizeof(Register);

// Whole registers go to places that their size divides, what lies before and behind through the caches.
static void copy_past_caches(const char* from, char* to, int64_t n) {
  const int64_t before = -reinterpret_cast<intptr_t>(to) & (kRegister - 1);
  if (n < before + kRegister) {
    __builtin_memcpy(to, from, n);
    return;
  }
  __builtin_memcpy(to, from, before);
  int64_t i = before;
  for (; i + kRegister <= n; i += kRegister) {
    Register bytes;
    __builtin_memcpy(&bytes, from + i, kRegister);
    store_past_caches(to + i, bytes);
  }
  __builtin_memcpy(to + i, from + i, n - i);
}
static void settle() { _mm_sfence(); }

template <class T>
static bool add_past_caches(Array a, int64_t i, Array b, int64_t j, Array to, int64_t k, int64_t n) {
  constexpr Dtype dtype = std::is_same_v<T, float> ? kFloat32 : kFloat64;
  T* sum = static_cast<T*>(at(to, k));
  if (a.dtype != dtype || b.dtype != dtype || to.dtype != dtype || reinterpret_cast<uintptr_t>(sum) % kRegister) return false;
  const T *x = static_cast<const T*>(at(a, i)), *y = static_cast<const T*>(at(b, j));
  typedef T V __attribute__((vector_size(4 * FASTSSL_WIDTH), aligned(alignof(T)), may_alias));
  constexpr int64_t kCount = kRegister / sizeof(T);
  int64_t e = 0;
  for (; e + kCount <= n; e += kCount) {
    const V both = *reinterpret_cast<const V*>(x + e) + *reinterpret_cast<const V*>(y + e);
    store_past_caches(reinterpret_cast<char*>(sum + e), (Register)both);
  }
  for (; e < n; e++) sum[e] = x[e] + y[e];
  return true;
}
#else
static constexpr void (*copy_past_caches)(const char*, char*, int64_t) = nullptr;
static void settle() {}
template <class T>
static bool add_past_caches(Array, int64_t, Array, int64_t, Array, int64_t, int64_t) {
  return false;
}
#endif

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

template <int kRows, class E, class T, class F>
static void accumulate_as(const E* const* rows, int64_t n, T* __restrict sum, const F& value) {
  const E* x[kRows];
  for (int r = 0; r < kRows; r++) x[r] = rows[r];
  for (int64_t e = 0; e < n; e++) {
    T s = sum[e];
    for (int r = 0; r < kRows; r++) s += value(x[r][e]);
    sum[e] = s;
  }
}

template <class E, class T, class F>
static void accumulate_as(const E* const* rows, int count, int64_t n, T* sum, const F& value) {
  if (count == kTogether) return accumulate_as<kTogether>(rows, n, sum, value);
  for (int r = 0; r < count; r++) accumulate_as<1>(rows + r, n, sum, value);
}

template <class T>
static void accumulate_rows(Array rows, const int64_t* i, int count, int64_t n, T* sum) {
  if (rows.dtype == kBFloat16) {
    const uint16_t* x[kTogether];
    for (int r = 0; r < count; r++) x[r] = static_cast<const uint16_t*>(at(rows, i[r]));
    return accumulate_as(x, count, n, sum, [](uint16_t h) { return T(from_bfloat16(h)); });
  }
  for_each_block(n, [&](int64_t first, int wide) {
    T buffer[kTogether][kBlock];
    const T* x[kTogether];
    for (int r = 0; r < count; r++) x[r] = values_of(rows, i[r] + first, wide, buffer[r]);
    accumulate_as(x, count, wide, sum + first, [](T v) { return v; });
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
static constexpr TokenRows<T> rows_of = {copy_row<T>,        copy_past_caches, settle,     add_past_caches<T>, add_rows<T>,
                                         accumulate_rows<T>, read_patch<T>,    scaling<T>, error<T>,           slope<T>};

static const TokenRows<float>& float_rows = rows_of<float>;
static const TokenRows<double>& double_rows = rows_of<double>;
