// The optimizers' functions of updates.h for one instruction set, included by updates.inl. A product is rounded before it is added:
// the same bits with and without instructions that do both.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#define FASTSSL_FN static inline
#include "common/optimizers.h"
#undef FASTSSL_FN

// Elements i .. i + n of a list as floats; as doubles in place.
static float* values_of(const Array& array, int64_t i, int n, float* buffer) { return widened(array, i, n, buffer); }
static double* values_of(const Array& array, int64_t i, int, double*) { return static_cast<double*>(at(array, i)); }

static void store(const float* values, const Array& array, int64_t i, int n) { narrowed(values, array, i, n); }
static void store(const double* values, const Array& array, int64_t i, int n) {
  if (array.kind != kNothing && values != at(array, i)) __builtin_memcpy(at(array, i), values, n * sizeof(double));
}

// The average of the new parameters and the shadows of both, from what is stored.
template <class T>
static void write_copies(const StepLists& lists, int64_t i, int n, const EmaRule& rule, T* p_buffer, T* e_buffer) {
  const T* p = values_of(lists.params, i, n, p_buffer);
  store(p, lists.shadow, i, n);
  if (lists.ema.kind == kNothing) return;
  T* e = values_of(lists.ema, i, n, e_buffer);
  average(e, p, n, rule);
  store(e, lists.ema, i, n);
  if (lists.ema_shadow.kind != kNothing) store(values_of(lists.ema, i, n, e_buffer), lists.ema_shadow, i, n);
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
  lists.params.kind == kFloat64 ? lars_in<double>(lists, offset, count, rule) : lars_in<float>(lists, offset, count, rule);
}

// Sixteen sums side by side, then one after another: the same order for every width of a register.
template <class T>
static void norms_in(const Array& params, const Array& grads, int64_t offset, int64_t count, T weight_decay, double* squares) {
  T buffer[2][kBlock];
  double of_p[16] = {}, of_d[16] = {};
  for (int64_t i = offset; i < offset + count; i += kBlock) {
    const int n = int(offset + count - i < kBlock ? offset + count - i : kBlock);
    const T* p = values_of(params, i, n, buffer[0]);
    const T* g = values_of(grads, i, n, buffer[1]);
    const auto add = [&](int j, int k) {
      const double x = p[j + k], y = weight_decay != T(0) ? multiply_add(weight_decay, p[j + k], g[j + k]) : g[j + k];
      of_p[k] += x * x;
      of_d[k] += y * y;
    };
    int j = 0;
    for (; j + 16 <= n; j += 16)
      for (int k = 0; k < 16; k++) add(j, k);
    for (int k = 0; j + k < n; k++) add(j, k);
  }
  squares[0] = squares[1] = 0.0;
  for (int k = 0; k < 16; k++) squares[0] += of_p[k], squares[1] += of_d[k];
}

static void lars_norms(Array params, Array grads, int64_t offset, int64_t count, double weight_decay, double* squares) {
  params.kind == kFloat64 ? norms_in<double>(params, grads, offset, count, weight_decay, squares)
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
  lists.params.kind == kFloat64 ? adamw_in<double>(lists, offset, count, rule) : adamw_in<float>(lists, offset, count, rule);
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
