// The functions that compute one element of a state update, for every instruction set of the CPU and for CUDA. The including file
// defines what a function is (FASTSSL_FN: static inline, or __device__) and, on the CPU, whether a b + c is one instruction
// (FASTSSL_FMA). There is no include guard, because each instruction set makes its own functions. Nothing branches on data, so that
// loops vectorise.

FASTSSL_FN uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
FASTSSL_FN float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// a b + c, rounded once where the machine can do so, as torch's kernels on the same machine do.
FASTSSL_FN float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#elif FASTSSL_FMA
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FASTSSL_FN double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#elif FASTSSL_FMA
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// 16-bit floats are given by their bits. They are rounded to the nearest, ties to even; NaN stays NaN, overflow gives infinity.
FASTSSL_FN float from_bfloat16(uint16_t h) { return float_of(uint32_t(h) << 16); }
FASTSSL_FN uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  return uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
FASTSSL_FN float from_float16(uint16_t h) {
  const uint32_t magnitude = h & 0x7FFFu;
  const float scaled = float_of(magnitude << 13) * 0x1p112f;  // exact, also for subnormal halves
  const uint32_t u = magnitude >= 0x7C00u ? (magnitude << 13) | 0x7F800000u : bits_of(scaled);
  return float_of(u | (uint32_t(h & 0x8000u) << 16));
}
FASTSSL_FN uint16_t to_float16(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;  // the sum rounds to a multiple of 2^-24
  uint32_t h = magnitude < 0x38800000u ? small : normal;
  h = magnitude >= 0x477FF000u ? 0x7C00u : h;  // from 65520 on
  h = magnitude > 0x7F800000u ? 0x7E00u : h;
  return uint16_t(h | ((u >> 16) & 0x8000u));
}

// Rounds x up or down with probabilities that make the result right on average: random bits are added to the `dropped` last bits,
// which are then cut off. Below float16's normal range the conversion that follows rounds to the nearest.
FASTSSL_FN float cut_at_random(float x, uint32_t random, int dropped) {
  const uint32_t u = bits_of(x), mask = (1u << dropped) - 1u;
  return (u & 0x7F800000u) == 0x7F800000u ? x : float_of((u + (random & mask)) & ~mask);
}

// e + w (p - e) in the two forms of torch.lerp: the first is for w < 1/2 and starts at e; the second is for all other w and starts
// at p, with the coefficient w - 1.
template <class T>
FASTSSL_FN T lerp_near_first(T e, T p, T weight) {
  return multiply_add(weight, p - e, e);
}
template <class T>
FASTSSL_FN T lerp_near_second(T e, T p, T coefficient) {
  return multiply_add(coefficient, p - e, p);
}
// m e + w p with the roundings of an in-place multiplication and an in-place addition: m e is rounded first.
template <class T>
FASTSSL_FN T multiplied_then_added(T e, T p, T kept, T weight) {
  return multiply_add(weight, p, e * kept);
}
