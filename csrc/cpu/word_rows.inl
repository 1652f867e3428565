// The functions of word_rows.h for one instruction set, compiled by each_isa.h.

#include "cpu/row_values.inl"

template <class T>
struct Products {
  const T *x, *y;
  auto many(int64_t e) const { return LaneOf<T>::load(x + e) * LaneOf<T>::load(y + e); }
  T one(int64_t e) const { return x[e] * y[e]; }
};

// The row itself where its elements are T, which needs no copy; else a null pointer.
template <class T>
static const T* in_place(Array table, int64_t i) {
  return table.dtype == (std::is_same_v<T, float> ? kFloat32 : kFloat64) ? static_cast<const T*>(at(table, i)) : nullptr;
}

template <class T>
static T dot(Array table, int64_t i, int64_t n, const T* x) {
  if (const T* row = in_place<T>(table, i)) return sum_over<T>(n, Products<T>{row, x});
  T total = 0;
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock];
    total += sum_over<T>(count, Products<T>{values_of(table, i + first, count, buffer), x + first});
  });
  return total;
}

template <class T>
static inline __attribute__((always_inline)) void add_values(const T* row, int64_t n, T factor, T* sum) {
  using L = LaneOf<T>;
  const auto all = L::all(factor);
  int64_t e = 0;
  for (; e + L::W <= n; e += L::W) L::store(sum + e, L::load(sum + e) + L::load(row + e) * all);
  for (; e < n; e++) sum[e] += row[e] * factor;
}

template <class T>
static void add(Array table, int64_t i, int64_t n, T factor, T* sum) {
  if (const T* row = in_place<T>(table, i)) return add_values(row, n, factor, sum);
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock];
    add_values(values_of(table, i + first, count, buffer), count, factor, sum + first);
  });
}

template <class T>
static void write(const T* x, Array to, int64_t i, int64_t n) {
  for_each_block(n, [&](int64_t first, int count) { store_values(x + first, to, i + first, count); });
}

template <class T>
static void adam(Array p, Array m, Array v, int64_t i, Array g, int64_t j, int64_t n, const RowAdamRule& rule) {
  const T rate = T(rule.rate), first_share = T(1.0 - rule.beta1), second_share = T(1.0 - rule.beta2), eps = T(rule.eps);
  for_each_block(n, [&](int64_t first, int count) {
    T rooms[4][kBlock];
    const T *param = values_of(p, i + first, count, rooms[0]), *mean = values_of(m, i + first, count, rooms[1]);
    const T *square = values_of(v, i + first, count, rooms[2]), *grad = values_of(g, j + first, count, rooms[3]);
    for (int e = 0; e < count; e++) {
      const T gradient = grad[e], moved = mean[e] + first_share * (gradient - mean[e]);
      const T grown = square[e] + second_share * (gradient * gradient - square[e]);
      rooms[0][e] = param[e] - rate * moved / (std::sqrt(grown) + eps);
      rooms[1][e] = moved, rooms[2][e] = grown;
    }
    store_values(rooms[0], p, i + first, count);
    store_values(rooms[1], m, i + first, count);
    store_values(rooms[2], v, i + first, count);
  });
}

template <class T>
static constexpr WordRows<T> rows_of = {dot<T>, add<T>, write<T>, adam<T>};

static const WordRows<float>& float_rows = rows_of<float>;
static const WordRows<double>& double_rows = rows_of<double>;
