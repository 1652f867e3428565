// The functions of sampled_rows.h for one instruction set, compiled by each_isa.h.

#include "cpu/lanes.h"

template <class T>
using LaneOf = std::conditional_t<std::is_same_v<T, float>, FloatLane, DoubleLane>;

// Products of x with R rows at once: the sums of the rows do not wait for each other, and x is loaded once for all.
template <int R, class T>
static inline __attribute__((always_inline)) void products_of(const T* x, const T* const* rows, int64_t n, T* out) {
  using L = LaneOf<T>;
  typename L::V even[R], odd[R];
  for (int r = 0; r < R; r++) even[r] = odd[r] = L::all(T(0));
  int64_t e = 0;
  for (; e + 2 * L::W <= n; e += 2 * L::W) {
    const auto a = L::load(x + e), b = L::load(x + e + L::W);
    for (int r = 0; r < R; r++) even[r] += a * L::load(rows[r] + e), odd[r] += b * L::load(rows[r] + e + L::W);
  }
  for (int r = 0; r < R; r++) {
    T rest = 0;
    for (int64_t j = e; j < n; j++) rest += x[j] * rows[r][j];
    out[r] = L::sum(even[r] + odd[r]) + rest;
  }
}

template <class T>
static void products(const T* x, const T* table, const int64_t* ids, int64_t count, int64_t n, T* out) {
  constexpr int R = 4;
  const T* rows[R];
  int64_t e = 0;
  for (; e + R <= count; e += R) {
    for (int r = 0; r < R; r++) rows[r] = table + ids[e + r] * n;
    products_of<R>(x, rows, n, out + e);
  }
  for (; e < count; e++) {
    rows[0] = table + ids[e] * n;
    products_of<1>(x, rows, n, out + e);
  }
}

template <class T>
static void shares(const T* logits, int64_t count, T shift, T* share) {
  using L = LaneOf<T>;
  const auto all_shift = L::all(shift);
  int64_t e = 0;
  for (; e + L::W <= count; e += L::W) L::store(share + e, L::exp(L::load(logits + e) - all_shift));
  for (; e < count; e++) share[e] = std::exp(logits[e] - shift);
}

// Columns `first` to `first` + P registers: their sums stay in registers while the rows go by.
template <int P, class T>
static inline __attribute__((always_inline)) void combine_columns(const T* table, const int64_t* ids, const T* factor,
                                                                  int64_t count, int64_t n, int64_t first, T* sum) {
  using L = LaneOf<T>;
  typename L::V part[P];
  for (int p = 0; p < P; p++) part[p] = L::all(T(0));
  for (int64_t e = 0; e < count; e++) {
    const T* row = table + ids[e] * n + first;
    const auto f = L::all(factor[e]);
    for (int p = 0; p < P; p++) part[p] += f * L::load(row + p * L::W);
  }
  for (int p = 0; p < P; p++) L::store(sum + first + p * L::W, part[p]);
}

template <class T>
static void combine(const T* table, const int64_t* ids, const T* factor, int64_t count, int64_t n, T* sum) {
  using L = LaneOf<T>;
  constexpr int P = 8;
  int64_t j = 0;
  for (; j + P * L::W <= n; j += P * L::W) combine_columns<P>(table, ids, factor, count, n, j, sum);
  for (; j + L::W <= n; j += L::W) combine_columns<1>(table, ids, factor, count, n, j, sum);
  for (; j < n; j++) {
    T rest = 0;
    for (int64_t e = 0; e < count; e++) rest += factor[e] * table[ids[e] * n + j];
    sum[j] = rest;
  }
}

template <class T>
static constexpr SampledRows<T> rows_of = {products<T>, shares<T>, combine<T>};

static const SampledRows<float>& float_rows = rows_of<float>;
static const SampledRows<double>& double_rows = rows_of<double>;
