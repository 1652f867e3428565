// One vector register of floats, as the compiler's own vector type, and one double, with the same source for every instruction set.
// each_isa.h includes this file once for each instruction set, with FASTSSL_WIDTH floats in a register. There is no include guard,
// since each inclusion makes new functions. A vector may lie at any address of floats; `auto&` to one in an array forgets that, as
// do template arguments, so that registers in arrays are named by their places.

struct FloatLane {
  using T = float;
  static constexpr int W = FASTSSL_WIDTH;
  typedef float V __attribute__((vector_size(4 * FASTSSL_WIDTH), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(4 * FASTSSL_WIDTH), aligned(4), may_alias));

  static inline V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static inline void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
  static inline V all(T a) { return a - V{}; }
  static inline V max(V a, V b) { return a > b ? a : b; }
  static inline I load_id(const int32_t* p) { return *reinterpret_cast<const I*>(p); }
  static inline void store_id(int32_t* p, I v) { *reinterpret_cast<I*>(p) = v; }
  static inline V select_equal(I id, int32_t other, V equal, V different) { return id == other ? equal : different; }
  static inline V replace_equal(V s, I id, int32_t other, T with) { return select_equal(id, other, all(with), s); }
  static inline I where_above(V a, V b, int32_t then, I otherwise) { return a > b ? then - I{} : otherwise; }
  // The first `count` entries from v, the others from `rest`.
  static inline V first(int count, V v, V rest) {
    T a[W], b[W];
    store(a, v), store(b, rest);
    for (int i = count; i < W; i++) a[i] = b[i];
    return load(a);
  }

  // Horizontal sum and maximum in a fixed tree order.
  static inline T sum(V v) {
    T a[W];
    store(a, v);
    for (int n = W / 2; n > 0; n /= 2)
      for (int i = 0; i < n; i++) a[i] += a[i + n];
    return a[0];
  }
  static inline T max(V v) {
    T a[W];
    store(a, v);
    for (int n = W / 2; n > 0; n /= 2)
      for (int i = 0; i < n; i++) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
    return a[0];
  }

  // 2^t for t <= 127, within 0.7 ulp. Below -126 the result is 0, so that excluded entries (t = -inf) vanish; any NaN gives NaN.
  // t = n + f with |f| <= 1/2: a minimax polynomial of degree 6 gives 2^f (relative error 1.9e-9), which is multiplied by 2^n, made
  // from its exponent bits.
  static inline V exp2(V t) {
    const V kRound = all(12583039.0f);  // 1.5 * 2^23 + 127: adding it leaves n + 127 in the low bits
    const V shifted = t + kRound;
    const V f = t - (shifted - kRound);
    V p = all(0x1.41d334p-13f);
    p = p * f + all(0x1.5f456ap-10f);
    p = p * f + all(0x1.3b2dbcp-7f);
    p = p * f + all(0x1.c6aed4p-5f);
    p = p * f + all(0x1.ebfbdap-3f);
    p = p * f + all(0x1.62e430p-1f);
    p = p * f + all(1.0f);
    const V power = p * (V)((I)shifted << 23);
    return t < all(-126.0f) ? all(0.0f) : power;
  }
  static inline V exp(V x) { return exp2(x * all(1.44269504f)); }  // for x <= 0, where the rounding of the product is harmless

  // log(1 + e) for e in [0, 1]: e times a minimax polynomial of degree 10, with a relative error of 7e-10, or 1.4e-7 in floats.
  static inline V log1p(V e) {
    V p = all(0x1.0a1aacp-9f);
    p = p * e + all(-0x1.b7555ep-7f);
    p = p * e + all(0x1.53c98ap-5f);
    p = p * e + all(-0x1.51ae16p-4f);
    p = p * e + all(0x1.fca87cp-4f);
    p = p * e + all(-0x1.49d826p-3f);
    p = p * e + all(0x1.975ccap-3f);
    p = p * e + all(-0x1.ffbd42p-3f);
    p = p * e + all(0x1.55534ep-2f);
    p = p * e + all(-0x1.fffff4p-2f);
    p = p * e + all(1.0f);
    return p * e;
  }
};

struct DoubleLane {
  using T = double;
  static constexpr int W = 1;
  using V = double;
  using I = int32_t;

  static inline V load(const T* p) { return *p; }
  static inline void store(T* p, V v) { *p = v; }
  static inline V all(T a) { return a; }
  static inline V max(V a, V b) { return a > b ? a : b; }
  static inline I load_id(const int32_t* p) { return *p; }
  static inline void store_id(int32_t* p, I v) { *p = v; }
  static inline V select_equal(I id, int32_t other, V equal, V different) { return id == other ? equal : different; }
  static inline V replace_equal(V s, I id, int32_t other, T with) { return id == other ? with : s; }
  static inline I where_above(V a, V b, int32_t then, I otherwise) { return a > b ? then : otherwise; }
  static inline V first(int count, V v, V rest) { return count > 0 ? v : rest; }
  static inline T sum(V v) { return v; }
  static inline T max(V v) { return v; }
  static inline V exp2(V t) { return std::exp2(t); }
  static inline V exp(V x) { return std::exp(x); }
  static inline V log1p(V e) { return std::log1p(e); }
};
