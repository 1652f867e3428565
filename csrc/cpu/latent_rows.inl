// The function of latent_rows.h for one instruction set, compiled by each_isa.h.

#include "cpu/row_values.inl"

// A row of the target and what makes h of it: (t - mean) scale.
template <class T>
struct Target {
  const T* t;
  T mean, scale;
};

template <class T>
static Target<T> read_target(const LatentHow& how, Array target, int64_t j, T* room) {
  const T* t = room;
  if (target.dtype == (std::is_same_v<T, float> ? kFloat32 : kFloat64)) t = static_cast<const T*>(at(target, j));
  else for_each_block(how.width, [&](int64_t first, int count) { values_of(target, j + first, count, room + first); });
  if (!how.normalize) return {t, T(0), T(1)};
  const T mean = sum_over<T>(how.width, Values<T>{t}) / T(how.width);
  const T variance = sum_over<T>(how.width, SquaredDistances<T>{t, mean}) / T(how.width);
  return {t, mean, T(1) / std::sqrt(variance + T(how.eps))};
}

// d(e) and size d'(e), of V: a register of floats, a float or a double.
template <class V>
struct Term {
  V each, slope;
};

template <class V>
static inline __attribute__((always_inline)) V signed_size(V e, V size) {
  const V zero{};
  return e > zero ? size : (e < zero ? -size : e);  // e itself: 0, or NaN
}

template <Distance distance, class V, class T>
static inline __attribute__((always_inline)) Term<V> term(V e, T value, T size) {
  const V zero{}, a = e < zero ? -e : e, all = size - zero;
  if constexpr (distance == Distance::kAbsolute) return {a, signed_size(e, all)};
  if constexpr (distance == Distance::kSquare) return {e * e, e * (T(2) * size)};
  if constexpr (distance == Distance::kSmooth) {
    const V turn = value - zero;
    return {a < turn ? e * e * (T(0.5) / value) : a - T(0.5) * value, a < turn ? e * (size / value) : signed_size(e, all)};
  }
  if constexpr (distance == Distance::kPower && std::is_same_v<V, T>) {
    const T power = std::pow(a, value - T(1));
    return {power * a / value, signed_size(e, size) * power};
  }
}

template <Distance distance, class T>
static T compare_block(const T* x, const Target<T>& h, int64_t first, int n, T value, T size, T* out) {
  using L = LaneOf<T>;
  constexpr int W = L::W, kParts = 4;
  const T* t = h.t + first;
  T sum = 0, rest = 0;
  int e = 0;
  if constexpr (distance != Distance::kPower) {  // whose power is not of vectors
    typename L::V part[kParts];
    for (int p = 0; p < kParts; p++) part[p] = L::all(T(0));
    for (; e + kParts * W <= n; e += kParts * W)
      for (int r = 0; r < kParts; r++) {
        const int i = e + r * W;
        const auto found = term<distance>(L::load(x + i) - (L::load(t + i) - L::all(h.mean)) * L::all(h.scale), value, size);
        part[r] += found.each;
        if (out) L::store(out + i, found.slope);
      }
    sum = L::sum((part[0] + part[1]) + (part[2] + part[3]));
  }
  for (; e < n; e++) {
    const auto found = term<distance>(x[e] - (t[e] - h.mean) * h.scale, value, size);
    rest += found.each;
    if (out) out[e] = found.slope;
  }
  return sum + rest;
}

template <Distance distance, class T>
static double compare_row(const LatentHow& how, Array pred, int64_t i, const Target<T>& h, T size, Array out, int64_t k) {
  constexpr Dtype dtype_of_sums = std::is_same_v<T, float> ? kFloat32 : kFloat64;
  double sum = 0;
  for_each_block(how.width, [&](int64_t first, int count) {
    T buffer[kBlock], slopes[kBlock];
    const T* x = values_of(pred, i + first, count, buffer);
    T* to = out.dtype == kNothing ? nullptr : out.dtype == dtype_of_sums ? static_cast<T*>(at(out, k + first)) : slopes;
    sum += compare_block<distance>(x, h, first, count, T(how.value), size, to);
    if (to == slopes) store_values(slopes, out, k + first, count);
  });
  return sum;
}

template <class T>
static double compare(const LatentHow& how, Array pred, int64_t i, Array target, int64_t j, T size, Array out, int64_t k, T* room) {
  const Target<T> h = read_target(how, target, j, room);
  switch (how.distance) {
    case Distance::kAbsolute:
      return compare_row<Distance::kAbsolute>(how, pred, i, h, size, out, k);
    case Distance::kSquare:
      return compare_row<Distance::kSquare>(how, pred, i, h, size, out, k);
    case Distance::kSmooth:
      return compare_row<Distance::kSmooth>(how, pred, i, h, size, out, k);
    default:
      return compare_row<Distance::kPower>(how, pred, i, h, size, out, k);
  }
}

template <class T>
static constexpr LatentRows<T> latent_rows_of = {compare<T>};

static const LatentRows<float>& float_rows = latent_rows_of<float>;
static const LatentRows<double>& double_rows = latent_rows_of<double>;
