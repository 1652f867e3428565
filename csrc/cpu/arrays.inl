// Reads and writes arrays of any float dtype as floats, in blocks that stay in the first-level cache. This file is compiled for
// each instruction set, after common/elements.h, and so has no include guard.

constexpr int kBlock = 512;

static void* at(const Array& array, int64_t i) { return static_cast<char*>(array.data) + i * bytes_of(array.dtype); }

// Elements i to i + n - 1 of an array as floats: in place where they are floats, otherwise widened into `buffer`.
[[maybe_unused]] static float* widened(const Array& array, int64_t i, int n, float* buffer) {
  if (array.dtype == kFloat32) return static_cast<float*>(at(array, i));
  const uint16_t* from = static_cast<const uint16_t*>(at(array, i));
  if (array.dtype == kBFloat16)
    for (int j = 0; j < n; j++) buffer[j] = from_bfloat16(from[j]);
  else
    for (int j = 0; j < n; j++) buffer[j] = from_float16(from[j]);
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
  if (array.dtype == kBFloat16)
    for (int j = 0; j < n; j++) to[j] = to_bfloat16(values[j]);
  else
    for (int j = 0; j < n; j++) to[j] = to_float16(values[j]);
}
