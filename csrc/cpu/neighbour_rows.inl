// The functions of neighbour_rows.h for one instruction set, compiled by each_isa.h.

#include "cpu/row_values.inl"

template <class T>
struct Squares {
  const T* x;
  auto many(int64_t e) const {
    const auto v = LaneOf<T>::load(x + e);
    return v * v;
  }
  T one(int64_t e) const { return x[e] * x[e]; }
};
template <class T>
struct ShiftedProducts {
  const T *x, *y;
  T shift;
  auto many(int64_t e) const { return LaneOf<T>::load(x + e) * (LaneOf<T>::load(y + e) + LaneOf<T>::all(shift)); }
  T one(int64_t e) const { return x[e] * (y[e] + shift); }
};
template <class T>
struct SquaredDifferences {
  const T *a, *b;
  T eps;
  auto many(int64_t e) const {
    const auto d = LaneOf<T>::load(a + e) - LaneOf<T>::load(b + e) + LaneOf<T>::all(eps);
    return d * d;
  }
  T one(int64_t e) const { return (a[e] - b[e] + eps) * (a[e] - b[e] + eps); }
};

// Calls many(e) for registers and one(e) for the elements that are left over.
template <class T, class Many, class One>
static inline __attribute__((always_inline)) void over_lanes(int64_t n, const Many& many, const One& one) {
  int64_t e = 0;
  for (; e + LaneOf<T>::W <= n; e += LaneOf<T>::W) many(e);
  for (; e < n; e++) one(e);
}

template <class T>
static bool holds(const Array& z) {
  return z.dtype == (std::is_same_v<T, float> ? kFloat32 : kFloat64);
}

template <class T>
static const T* values(Array z, int64_t i, int64_t n, T* buffer) {
  if (holds<T>(z)) return static_cast<const T*>(at(z, i));
  for_each_block(n, [&](int64_t first, int count) { values_of(z, i + first, count, buffer + first); });
  return buffer;
}

template <class T>
static void store(const T* x, int64_t n, Array z, int64_t i) {
  for_each_block(n, [&](int64_t first, int count) { store_values(x + first, z, i + first, count); });
}

template <class T>
static T unit(Array z, int64_t i, int64_t n, T eps, T* x) {
  using L = LaneOf<T>;
  const T* row = values(z, i, n, x);
  const T norm = std::sqrt(sum_over<T>(n, Squares<T>{row})), length = norm < eps ? eps : norm;
  over_lanes<T>(
      n, [&](int64_t e) { L::store(x + e, L::load(row + e) / L::all(length)); }, [&](int64_t e) { x[e] = row[e] / length; });
  return norm;
}

template <class T>
static T distance(const T* a, const T* b, int64_t n, T eps) {
  return std::sqrt(sum_over<T>(n, SquaredDifferences<T>{a, b, eps}));
}

template <class T>
static void add_difference(const T* a, const T* b, int64_t n, T factor, T* sum) {
  using L = LaneOf<T>;
  const auto all_factor = L::all(factor);
  over_lanes<T>(
      n, [&](int64_t e) { L::store(sum + e, L::load(sum + e) + (L::load(a + e) - L::load(b + e)) * all_factor); },
      [&](int64_t e) { sum[e] += (a[e] - b[e]) * factor; });
}

template <class T>
static void write(const T* x, const T* sum, int64_t n, T shift, bool project, T scale, Array to, int64_t i) {
  using L = LaneOf<T>;
  const T along = project ? sum_over<T>(n, ShiftedProducts<T>{x, sum, shift}) : T(0);
  const auto all_along = L::all(along), all_scale = L::all(scale), all_shift = L::all(shift);
  for_each_block(n, [&](int64_t first, int count) {
    T buffer[kBlock];
    T* out = holds<T>(to) ? static_cast<T*>(at(to, i + first)) : buffer;
    const T *row = x + first, *g = sum + first;
    if (project)
      over_lanes<T>(
          count, [&](int64_t e) { L::store(out + e, (L::load(g + e) + all_shift - L::load(row + e) * all_along) * all_scale); },
          [&](int64_t e) { out[e] = (g[e] + shift - row[e] * along) * scale; });
    else
      over_lanes<T>(
          count, [&](int64_t e) { L::store(out + e, (L::load(g + e) + all_shift) * all_scale); },
          [&](int64_t e) { out[e] = (g[e] + shift) * scale; });
    store_values(out, to, i + first, count);
  });
}

template <class T>
static void row_maxima(const T* S, int m, int n, int ld, T* largest) {
  using L = LaneOf<T>;
  const T least = -std::numeric_limits<T>::infinity();
  for (int i = 0; i < m; i++) {
    const T* s = S + int64_t(i) * ld;
    auto top = L::all(least), second = top;
    T rest = least;
    int j = 0;
    for (; j + 2 * L::W <= n; j += 2 * L::W) top = L::max(L::load(s + j), top), second = L::max(L::load(s + j + L::W), second);
    for (; j < n; j++) rest = s[j] > rest ? s[j] : rest;
    const T found = L::max(L::max(top, second));
    largest[i] = found > rest ? found : rest;
  }
}

template <class T>
static void column_maxima(const T* S, int m, int n, int ld, T* largest) {
  using L = LaneOf<T>;
  over_lanes<T>(
      n,
      [&](int64_t j) {
        auto top = L::load(S + j);
        for (int i = 1; i < m; i++) top = L::max(L::load(S + int64_t(i) * ld + j), top);
        L::store(largest + j, top);
      },
      [&](int64_t j) {
        largest[j] = S[j];
        for (int i = 1; i < m; i++) largest[j] = S[int64_t(i) * ld + j] > largest[j] ? S[int64_t(i) * ld + j] : largest[j];
      });
}

template <class T>
static constexpr NeighbourRows<T> rows_of = {unit<T>,           values<T>, store<T>,      distance<T>,
                                             add_difference<T>, write<T>,  row_maxima<T>, column_maxima<T>};

static const NeighbourRows<float>& float_rows = rows_of<float>;
static const NeighbourRows<double>& double_rows = rows_of<double>;
