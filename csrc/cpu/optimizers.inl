// The optimizers' functions of updates.h for one instruction set, included by updates.inl. A product is rounded before it is added,
// so that instructions that do both give the same bits.

// |p|^2 and |d|^2, d = g + weight_decay p: sixteen sums side by side, which are then added one after another, the same order for
// every width of a register. The square of a float is exact in a double. This function stands above the line that forbids
// contraction, because d is one instruction where the machine has it, as multiply_add is.
constexpr int kSums = 16;

static void add_norms(const float* p, const float* g, int n, float weight_decay, double* of_p, double* of_d) {
  constexpr int kWide = FASTSSL_WIDTH / 2, kParts = kSums / kWide;
  typedef float Floats __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
  typedef double Doubles __attribute__((vector_size(8 * kWide), aligned(8), may_alias));
  Doubles sum_p[kParts], sum_d[kParts];
  __builtin_memcpy(sum_p, of_p, sizeof sum_p), __builtin_memcpy(sum_d, of_d, sizeof sum_d);
  int j = 0;
  for (; j + kSums <= n; j += kSums)
    for (int r = 0; r < kParts; r++) {
      const Floats a = *reinterpret_cast<const Floats*>(p + j + r * kWide);
      const Floats b = *reinterpret_cast<const Floats*>(g + j + r * kWide);
      const Doubles x = __builtin_convertvector(a, Doubles);
      const Doubles d = __builtin_convertvector(weight_decay != 0.0f ? weight_decay * a + b : b, Doubles);
      sum_p[r] += x * x, sum_d[r] += d * d;
    }
  __builtin_memcpy(of_p, sum_p, sizeof sum_p), __builtin_memcpy(of_d, sum_d, sizeof sum_d);
  for (int k = 0; j + k < n; k++) {
    const double x = p[j + k], d = weight_decay != 0.0f ? multiply_add(weight_decay, p[j + k], g[j + k]) : g[j + k];
    of_p[k] += x * x, of_d[k] += d * d;
  }
}
static void add_norms(const double* p, const double* g, int n, double weight_decay, double* of_p, double* of_d) {
  for (int j = 0; j < n; j++) {
    const double d = weight_decay != 0.0 ? multiply_add(weight_decay, p[j], g[j]) : g[j];
    of_p[j % kSums] += p[j] * p[j], of_d[j % kSums] += d * d;
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#define FASTSSL_FN static inline
#include "common/optimizers.h"
#undef FASTSSL_FN

// Elements i .. i + n of a list as floats, or as doubles in place.
static float* values_of(const Array& array, int64_t i, int n, float* buffer) { return widened(array, i, n, buffer); }
static double* values_of(const Array& array, int64_t i, int, double*) { return static_cast<double*>(at(array, i)); }

static void store(const float* values, const Array& array, int64_t i, int n) { narrowed(values, array, i, n); }
static void store(const double* values, const Array& array, int64_t i, int n) {
  if (array.dtype != kNothing && values != at(array, i)) __builtin_memcpy(at(array, i), values, n * sizeof(double));
}

// Writes the average of the new parameters and the shadows of both, from the values that have been stored.
template <class T>
static void write_copies(const StepLists& lists, int64_t i, int n, const EmaRule& rule, T* p_buffer, T* e_buffer) {
  const T* p = values_of(lists.params, i, n, p_buffer);
  store(p, lists.shadow, i, n);
  if (lists.ema.dtype == kNothing) return;
  T* e = values_of(lists.ema, i, n, e_buffer);
  average(e, p, n, rule);
  store(e, lists.ema, i, n);
  if (lists.ema_shadow.dtype != kNothing) store(values_of(lists.ema, i, n, e_buffer), lists.ema_shadow, i, n);
}

template <class T>
static void lars_in(const StepLists& lists, int64_t offset, int64_t count, const LarsRule& rule) {
  T buffer[3][kBlock];
  const LarsRates<T> rates = {T(rule.weight_decay), T(rule.ratio), T(rule.momentum), T(rule.rate), rule.nesterov};
  for (int64_t i = offset; i < offset + count; i += kBlock) {
    const int n = int(offset + count - i < kBlock ? offset + count - i : kBlock);
    T* p = values_of(lists.params, i, n, buffer[0]);
    const T* g = values_of(lists.grads, i, n, buffer[1]);
    T* mu = values_of(lists.first, i, n, buffer[2]);
    for (int j = 0; j < n; j++) lars_element(p[j], g[j], mu[j], rates);
    store(p, lists.params, i, n);
    store(mu, lists.first, i, n);
    write_copies(lists, i, n, rule.ema, buffer[0], buffer[1]);
  }
}

static void lars(const StepLists& lists, int64_t offset, int64_t count, const LarsRule& rule) {
  lists.params.dtype == kFloat64 ? lars_in<double>(lists, offset, count, rule) : lars_in<float>(lists, offset, count, rule);
}

template <class T>
static void norms_in(const Array& params, const Array& grads, int64_t offset, int64_t count, T weight_decay, double* squares) {
  T buffer[2][kBlock];
  double of_p[kSums] = {}, of_d[kSums] = {};
  for (int64_t i = offset; i < offset + count; i += kBlock) {
    const int n = int(offset + count - i < kBlock ? offset + count - i : kBlock);
    add_norms(values_of(params, i, n, buffer[0]), values_of(grads, i, n, buffer[1]), n, weight_decay, of_p, of_d);
  }
  squares[0] = squares[1] = 0.0;
  for (int k = 0; k < kSums; k++) squares[0] += of_p[k], squares[1] += of_d[k];
}

static void lars_norms(Array params, Array grads, int64_t offset, int64_t count, double weight_decay, double* squares) {
  params.dtype == kFloat64 ? norms_in<double>(params, grads, offset, count, weight_decay, squares)
                           : norms_in<float>(params, grads, offset, count, float(weight_decay), squares);
}

template <class T>
static void adamw_in(const StepLists& lists, int64_t offset, int64_t count, const AdamRule& rule) {
  T buffer[4][kBlock];
  const AdamRates<T> rates = {T(rule.kept), T(rule.first), T(rule.second), T(rule.beta2), T(rule.size), T(rule.root), T(rule.eps)};
  for (int64_t i = offset; i < offset + count; i += kBlock) {
    const int n = int(offset + count - i < kBlock ? offset + count - i : kBlock);
    T* p = values_of(lists.params, i, n, buffer[0]);
    const T* g = values_of(lists.grads, i, n, buffer[1]);
    T* m = values_of(lists.first, i, n, buffer[2]);
    T* v = values_of(lists.second, i, n, buffer[3]);
    for (int j = 0; j < n; j++) adamw_element(p[j], g[j], m[j], v[j], rates);
    store(p, lists.params, i, n);
    store(m, lists.first, i, n);
    store(v, lists.second, i, n);
    write_copies(lists, i, n, rule.ema, buffer[0], buffer[1]);
  }
}

static void adamw(const StepLists& lists, int64_t offset, int64_t count, const AdamRule& rule) {
  lists.params.dtype == kFloat64 ? adamw_in<double>(lists, offset, count, rule) : adamw_in<float>(lists, offset, count, rule);
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
