// The functions of updates.h for one instruction set, compiled by each_isa.h.

#define FASTSSL_FN static inline
#include "common/elements.h"
#include "common/philox.h"
#undef FASTSSL_FN

#include "cpu/arrays.inl"

static void cut_block_at_random(float* values, Dtype dtype, int64_t i, int n, uint32_t stream, uint64_t seed) {
  for (int j = 0; j < n; j += 8) {
    const Words words = random_words(uint64_t(i + j) / 8, stream, seed);
    for (int k = 0; k < 8 && j + k < n; k++)
      values[j + k] = cut_at_random(values[j + k], random_half(words, k), dtype == kBFloat16 ? 16 : 13);
  }
}

// e and p may be the same array: a teacher that shares a layer with its student.
template <class T>
static void average(T* e, const T* p, int64_t n, const EmaRule& rule) {
  const T kept = T(rule.kept), weight = T(rule.weight), coefficient = weight - T(1);
  if (rule.mul_add)
    for (int64_t j = 0; j < n; j++) e[j] = multiplied_then_added(e[j], p[j], kept, weight);
  else if (weight < T(0.5))
    for (int64_t j = 0; j < n; j++) e[j] = lerp_near_first(e[j], p[j], weight);
  else
    for (int64_t j = 0; j < n; j++) e[j] = lerp_near_second(e[j], p[j], coefficient);
}

static void ema(Array e, Array p, Array shadow, int64_t offset, int64_t count, uint32_t stream, const EmaRule& rule) {
  if (e.dtype == kFloat64) {
    average(static_cast<double*>(at(e, offset)), static_cast<const double*>(at(p, offset)), count, rule);
    if (shadow.dtype == kFloat64) __builtin_memcpy(at(shadow, offset), at(e, offset), count * sizeof(double));
    return;
  }
  if (e.dtype == kFloat32 && p.dtype == kFloat32 && shadow.dtype == kNothing) {
    average(static_cast<float*>(at(e, offset)), static_cast<const float*>(at(p, offset)), count, rule);
    return;
  }
  float e_buffer[kBlock], p_buffer[kBlock];
  for (int64_t i = offset; i < offset + count; i += kBlock) {
    const int n = int(offset + count - i < kBlock ? offset + count - i : kBlock);
    float* values = widened(e, i, n, e_buffer);
    average(values, widened(p, i, n, p_buffer), n, rule);
    if (rule.stochastic && e.dtype != kFloat32) cut_block_at_random(values, e.dtype, i, n, stream, rule.seed);
    narrowed(values, e, i, n);
    if (shadow.dtype != kNothing) narrowed(widened(e, i, n, e_buffer), shadow, i, n);  // what e is now, after rounding
  }
}

#include "cpu/optimizers.inl"

static const Updates updates_in_use = {ema, lars_norms, lars, adamw};
