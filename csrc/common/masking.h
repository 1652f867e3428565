// Sort keys of the ops that make masks, for the CPU and for CUDA. The including file first defines FASTSSL_FN and includes
// elements.h, whose header says more.

// Unsigned integers in the order of the numbers: -0 equals 0, and NaN is above everything.
FASTSSL_FN uint32_t ordered_key(float x) {
  if (x != x) return ~0u;
  const uint32_t bits = bits_of(x == 0.0f ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
FASTSSL_FN uint64_t ordered_key(double x) {
  if (x != x) return ~0ull;
  x = x == 0.0 ? 0.0 : x;
  uint64_t bits;
  __builtin_memcpy(&bits, &x, 8);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
