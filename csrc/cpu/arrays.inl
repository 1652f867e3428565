// Reads and writes arrays of any float dtype as floats, in blocks that stay in the first-level cache. This file is compiled for
// each instruction set, after common/elements.h, and so has no include guard.

constexpr int kBlock = 512;

// Conversions of kHalves elements of float16. Instruction sets with F16C convert eight at once; compilers do not use its
// instructions for code that converts one element.
#if defined(__x86_64__) && FASTSSL_WIDTH >= 8
constexpr int kHalves = 8;
static inline void widen_halves(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
static inline void narrow_to_halves(const float* from, uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#else
constexpr int kHalves = 1;
static inline void widen_halves(const uint16_t* from, float* to) { *to = from_float16(*from); }
static inline void narrow_to_halves(const float* from, uint16_t* to) { *to = to_float16(*from); }
#endif

static void* at(const Array& array, int64_t i) { return static_cast<char*>(array.data) + i * bytes_of(array.dtype); }

// Elements i to i + n - 1 of an array as floats: in place where they are floats, otherwise widened into `buffer`.
[[maybe_unused]] static float* widened(const Array& array, int64_t i, int n, float* buffer) {
  if (array.dtype == kFloat32) return static_cast<float*>(at(array, i));
  const uint16_t* from = static_cast<const uint16_t*>(at(array, i));
  int j = 0;
  if (array.dtype == kBFloat16) {
    for (; j < n; j++) buffer[j] = from_bfloat16(from[j]);
    return buffer;
  }
  for (; j + kHalves <= n; j += kHalves) widen_halves(from + j, buffer + j);
  for (; j < n; j++) buffer[j] = from_float16(from[j]);
  return buffer;
}

// The reverse of `widened`; there is nothing to do where `values` are the elements themselves.
[[maybe_unused]] static void narrowed(const float* values, const Array& array, int64_t i, int n) {
  if (array.dtype == kNothing) return;
  if (array.dtype == kFloat32) {
    float* to = static_cast<float*>(at(array, i));
    if (to != values) __builtin_memcpy(to, values, n * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(at(array, i));
  int j = 0;
  if (array.dtype == kBFloat16) {
    for (; j < n; j++) to[j] = to_bfloat16(values[j]);
    return;
  }
  for (; j + kHalves <= n; j += kHalves) narrow_to_halves(values + j, to + j);
  for (; j < n; j++) to[j] = to_float16(values[j]);
}
