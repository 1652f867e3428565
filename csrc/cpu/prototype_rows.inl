// The functions of prototype_rows.h for one instruction set, compiled by each_isa.h.

#include "cpu/row_values.inl"

template <class L>
struct PrototypeFunctions {
  using T = typename L::T;
  using V = typename L::V;
  static constexpr int W = L::W;
  static constexpr T kInf = std::numeric_limits<T>::infinity();
  static constexpr Dtype kOwn = std::is_same_v<T, float> ? kFloat32 : kFloat64;

  // Calls f(first, count) for the vectors of n elements, whose count is the constant W but for the last one.
  template <class F>
  static inline __attribute__((always_inline)) void for_each_vector(int n, const F& f) {
    int j = 0;
    for (; j + W <= n; j += W) f(j, std::integral_constant<int, W>());
    if (j < n) f(j, n - j);
  }
  // The first `count` elements from p on, and `rest` in the other places.
  static inline __attribute__((always_inline)) V some(const T* p, int count, T rest) {
    if (count == W) return L::load(p);
    T full[W];
    for (int j = 0; j < W; j++) full[j] = j < count ? p[j] : rest;
    return L::load(full);
  }
  static inline __attribute__((always_inline)) void put(T* p, int count, V v) {
    if (count == W) return L::store(p, v);
    T full[W];
    L::store(full, v);
    for (int j = 0; j < count; j++) p[j] = full[j];
  }
  static inline V finite(V v) { return v == v ? v : L::all(0); }  // of what may be NaN where other terms are not finite
  // A row that has no logit above -inf yet has the maximum -inf. Subtracting 0 instead gives e^(-inf) = 0, where -inf would give
  // NaN.
  static inline T base_of(T top) { return top == -kInf ? T(0) : top; }
  // e^(z scale), given scale in the base of the instruction set's exponential
  static T in_base(T scale) { return std::is_same_v<T, float> ? T(1.4426950408889634 * double(scale)) : scale; }
  static inline __attribute__((always_inline)) V power(V z) {
    if constexpr (std::is_same_v<T, float>) return L::exp2(z);
    else return L::exp(z);
  }

  // x + b - top: the difference of floats near each other is exact, and the sum's rounding error is added.
  template <bool kBias>
  static inline __attribute__((always_inline)) V below(V x, V b, V top) {
    if constexpr (!kBias) return x - top;
    const V y = x + b, of_b = y - x;
    return (y - top) + finite((x - (y - of_b)) + (b - of_b));
  }
  template <bool kBias>
  static inline __attribute__((always_inline)) V bias_of(const T* bias, int j, int count) {
    if constexpr (kBias) return some(bias + j, count, T(0));
    else return L::all(0);
  }

  // With `kept`, the exponentials of a block of kColumns go there, and the largest entry that they are relative to into `tops`.
  template <bool kBias>
  static void join_as(Array x, int64_t i, int64_t n, const T* bias, T scale, RowSum<T>* row, T* kept, T* tops) {
    const V in_units = L::all(in_base(scale));
    for_each_block(n, [&](int64_t first, int count) {
      T buffer[kBlock];
      const T* v = values_of(x, i + first, count, buffer);
      const T* b = kBias ? bias + first : nullptr;
      V top_v = L::all(-kInf);
      for_each_vector(count, [&](int j, auto some_count) __attribute__((always_inline)) {
        const V s = some(v + j, some_count, -kInf);
        top_v = L::max(top_v, kBias ? s + bias_of<kBias>(b, j, some_count) : s);
      });
      const T top = L::max(top_v);
      if (top > row->top) {
        row->sum *= std::exp((row->top - top) * scale);
        row->top = top;
      }
      const V base = L::all(base_of(row->top));
      V total = L::all(0);
      T unused[W];
      T* e = kept ? kept + first : unused;
      const int step = kept ? 1 : 0;
      for_each_vector(count, [&](int j, auto some_count) __attribute__((always_inline)) {
        const V each = power(below<kBias>(some(v + j, some_count, -kInf), bias_of<kBias>(b, j, some_count), base) * in_units);
        put(e + step * j, some_count, each);
        total = total + each;
      });
      if (kept) tops[first / kBlock] = row->top;
      row->sum += L::sum(total);
    });
  }
  static void join(Array x, int64_t i, int64_t n, const T* bias, T scale, RowSum<T>* row) {
    (bias ? join_as<true> : join_as<false>)(x, i, n, bias, scale, row, nullptr, nullptr);
  }
  static void join_and_keep(Array x, int64_t i, int64_t n, const T* bias, T scale, RowSum<T>* row, T* kept, T* tops) {
    (bias ? join_as<true> : join_as<false>)(x, i, n, bias, scale, row, kept, tops);
  }
  static void add_kept(const T* kept, const T* tops, int64_t n, T scale, RowSum<T> row, T* sums) {
    for_each_block(n, [&](int64_t first, int count) {
      const V share = L::all(std::exp((tops[first / kBlock] - row.top) * scale) / row.sum);
      T* sum = sums + first;
      const T* e = kept + first;
      for_each_vector(count, [&](int j, auto some_count) __attribute__((always_inline)) {
        put(sum + j, some_count, some(sum + j, some_count, T(0)) + some(e + j, some_count, T(0)) * share);
      });
    });
  }

  static T total(Array x, int64_t i, int64_t n) {
    double sum = 0;
    for_each_block(n, [&](int64_t first, int count) {
      T buffer[kBlock];
      const T* v = values_of(x, i + first, count, buffer);
      V part = L::all(0);
      for_each_vector(count,
                      [&](int j, auto some_count) __attribute__((always_inline)) { part = part + some(v + j, some_count, T(0)); });
      sum += L::sum(part);
    });
    return T(sum);
  }

  template <bool kBias, bool kAdd>
  static inline __attribute__((always_inline)) void softmax(Array x, int64_t i, int n, const T* bias, T scale, RowSum<T> row,
                                                            T* out) {
    T buffer[kBlock];
    const T* v = values_of(x, i, n, buffer);
    const V base = L::all(base_of(row.top)), in_units = L::all(in_base(scale)), share = L::all(T(1) / row.sum);
    for_each_vector(n, [&](int j, auto count) __attribute__((always_inline)) {
      const V e = power(below<kBias>(some(v + j, count, -kInf), bias_of<kBias>(bias, j, count), base) * in_units) * share;
      put(out + j, count, kAdd ? some(out + j, count, T(0)) + e : e);
    });
  }
  static void target(Array x, int64_t i, int n, const T* bias, T scale, RowSum<T> row, T* out) {
    if (bias) softmax<true, false>(x, i, n, bias, scale, row, out);
    else softmax<false, false>(x, i, n, nullptr, scale, row, out);
  }
  static void values(Array x, int64_t i, int n, T* out) {
    const T* v = values_of(x, i, n, out);
    if (v != out) __builtin_memcpy(out, v, n * sizeof(T));
  }
  static void add(T* out, const T* other, int n) {
    for_each_vector(n, [&](int j, auto count) __attribute__((always_inline)) {
      put(out + j, count, some(out + j, count, T(0)) + some(other + j, count, T(0)));
    });
  }

  template <bool kGradient>
  static inline __attribute__((always_inline)) T student_as(Array s, int64_t i, int n, const T* q, T scale, T top, T share, T slope,
                                                            Array out, int64_t j0) {
    T buffer[kBlock], result_buffer[kBlock];
    const T* v = values_of(s, i, n, buffer);
    T* result = kGradient && out.dtype == kOwn ? static_cast<T*>(at(out, j0)) : result_buffer;
    const V base = L::all(top), in_units = L::all(in_base(scale)), share_v = L::all(share), slope_v = L::all(slope);
    V dot = L::all(0);
    for_each_vector(n, [&](int j, auto count) __attribute__((always_inline)) {
      const V z = some(v + j, count, top) - base, target = some(q + j, count, T(0));
      dot = dot - target * z;
      if constexpr (kGradient) put(result + j, count, power(z * in_units) * share_v - target * slope_v);
    });
    if constexpr (kGradient) store_values(result, out, j0, n);
    return L::sum(dot);
  }
  static T student(Array s, int64_t i, int n, const T* q, T scale, T top, T share, T slope, Array out, int64_t j) {
    return out.dtype == kNothing ? student_as<false>(s, i, n, q, scale, top, share, slope, out, j)
                                 : student_as<true>(s, i, n, q, scale, top, share, slope, out, j);
  }

  static void join_columns(Array x, int64_t i, int64_t n, T scale, T* top, T* sum) {
    const V in_units = L::all(in_base(scale)), nothing = L::all(-kInf);
    for_each_block(n, [&](int64_t first, int count) {
      T buffer[kBlock];
      const T* v = values_of(x, i + first, count, buffer);
      for_each_vector(count, [&](int j, auto some_count) __attribute__((always_inline)) {
        const V s = some(v + j, some_count, -kInf), old = some(top + first + j, some_count, -kInf);
        const V before = some(sum + first + j, some_count, T(0));
        const V distance = s > old ? old - s : s - old;
        const V e = s == nothing ? L::all(0) : power(distance * in_units);
        put(sum + first + j, some_count, s > old ? before * e + L::all(1) : before + e);
        put(top + first + j, some_count, s > old ? s : old);
      });
    });
  }

  static void multiply(Array x, int64_t i, int64_t n, T factor) {
    for_each_block(n, [&](int64_t first, int count) {
      T buffer[kBlock], result_buffer[kBlock];
      const T* v = values_of(x, i + first, count, buffer);
      T* result = x.dtype == kOwn ? static_cast<T*>(at(x, i + first)) : result_buffer;
      for_each_vector(count, [&](int j, auto some_count) __attribute__((always_inline)) {
        put(result + j, some_count, some(v + j, some_count, T(0)) * L::all(factor));
      });
      store_values(result, x, i + first, count);
    });
  }

  static_assert(kBlock == kColumns);
  static constexpr PrototypeRows<T> table = {join,    total,         target,   values,       add,
                                             student, join_and_keep, add_kept, join_columns, multiply};
};

static const PrototypeRows<float>& float_rows = PrototypeFunctions<FloatLane>::table;
static const PrototypeRows<double>& double_rows = PrototypeFunctions<DoubleLane>::table;
