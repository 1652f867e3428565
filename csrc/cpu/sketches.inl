// The functions of sketches.h for one instruction set. There is no include guard: each_isa.h includes this file once for each set.
#include "common/philox.h"
#include "cpu/lanes.h"

// Quarter turns of step x: the whole ones, and what is left in [-1/2, 1/2]. They are counted in float64, so a large x keeps all its
// digits: the phase is right to float32 while |step x| < 2^29. From 2^51 on adding kRound rounds to more than whole numbers: what
// is left may then be any number, and wave_of makes it one of [-1/2, 1/2]. Of infinity it is NaN.
template <class L>
static inline void quarters(const typename L::T* x, double scale, typename L::T* rest, int32_t* whole) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the whole number in the low bits
  for (int i = 0; i < L::W; i++) {
    const double u = double(x[i]) * scale, shifted = u + kRound;
    rest[i] = typename L::T(u - (shifted - kRound));
    int64_t bits;
    std::memcpy(&bits, &shifted, 8);
    whole[i] = int32_t(bits);
  }
}

// Cosine and sine of (whole + rest) quarter turns; minimax polynomials with errors of 3e-9. NaN stays NaN.
template <class L>
static inline void wave_of(typename L::V rest, typename L::I whole, typename L::V& c, typename L::V& s) {
  using V = typename L::V;
  using I = typename L::I;
  const V half = L::all(0.5f), below = half < rest ? half : rest, f = -half > below ? -half : below;
  const V t = f * f;
  V p = L::all(-0x1.2d9302p-8f);
  p = p * t + L::all(0x1.465e92p-4f);
  p = p * t + L::all(-0x1.4abbbap-1f);
  p = p * t + L::all(-0x1.777a5cp-25f);  // what float32 leaves of pi / 2: not random, it would grow with each rotation
  const V sine = f * L::all(0x1.921fb6p+0f) + f * p;
  V q = L::all(0x1.db650ep-11f);
  q = q * t + L::all(-0x1.55cb98p-6f);
  q = q * t + L::all(0x1.03c1eap-2f);
  q = q * t + L::all(-0x1.3bd3ccp+0f);
  const V cosine = q * t + L::all(1.0f);
  const I odd = (whole & 1) != 0;
  s = odd ? cosine : sine;
  c = odd ? sine : cosine;
  s = (V)((I)s ^ ((whole & 2) << 30));
  c = (V)((I)c ^ (((whole + 1) & 2) << 30));
}

template <class L>
struct SketchFunctions {
  using T = typename L::T;
  using V = typename L::V;
  using I = typename L::I;
  static constexpr int W = L::W;
  // Knots whose sums stay in registers, of which there are 32 with 16 lanes, otherwise 16.
  static constexpr int kGroup = W == 16 ? 8 : 4;
  static constexpr int kTogether = 4;  // rows
  // Rows whose waves are added up before they are added to the sum of a tile, which is rounded more coarsely: cosines are near 1.
  static constexpr int kRun = 16;

  // cos and sin of step x for W columns of m rows.
  static void waves(const T* x, int ld, int m, double step, T* c, T* s) {
    if constexpr (W == 1) {
      for (int i = 0; i < m; i++) c[i] = std::cos(step * x[int64_t(i) * ld]), s[i] = std::sin(step * x[int64_t(i) * ld]);
    } else {
      const double scale = step / 1.57079632679489661923;
      T rest[kWaveRows * W];
      int32_t whole[kWaveRows * W];
      for (int i = 0; i < m; i++) quarters<L>(x + int64_t(i) * ld, scale, rest + i * W, whole + i * W);
      for (int i = 0; i < m; i++) {
        V cosine, sine;
        wave_of<L>(L::load(rest + i * W), L::load_id(whole + i * W), cosine, sine);
        L::store(c + i * W, cosine), L::store(s + i * W, sine);
      }
    }
  }

  // The sums of kGroup knots; c and s are those of the knot before and, after it, of the last one. The first group begins at 1.
  template <bool kFirst>
  static void group(const T* c1, const T* s1, int m, T* c, T* s, V* cosines, V* sines) {
    for (int k = 0; k < kGroup; k++) cosines[k] = sines[k] = L::all(T(0));
    for (int begin = 0; begin < m; begin += kRun) {
      V cosine[kGroup], sine[kGroup];
      for (int k = 0; k < kGroup; k++) cosine[k] = sine[k] = L::all(T(0));
      for (int i = begin; i < m && i < begin + kRun; i++) {
        const V a = L::load(c1 + i * W), b = L::load(s1 + i * W);
        V u = kFirst ? a : L::load(c + i * W), v = kFirst ? b : L::load(s + i * W);
#pragma GCC unroll 8
        for (int k = 0; k < kGroup; k++) {
          if (!kFirst || k > 0) {
            const V next = u * a - v * b;
            v = u * b + v * a;
            u = next;
          }
          cosine[k] += u, sine[k] += v;
        }
        L::store(c + i * W, u), L::store(s + i * W, v);
      }
      for (int k = 0; k < kGroup; k++) cosines[k] += cosine[k], sines[k] += sine[k];
    }
  }

  static void add_lanes(V v, double* sum) {
    T lanes[W];
    L::store(lanes, v);
    for (int i = 0; i < W; i++) sum[i] += lanes[i];
  }

  static void add_waves(const T* x, int ld, int m, int n, double step, int knots, double* sums) {
    T c1[kWaveRows * W], s1[kWaveRows * W], c[kWaveRows * W], s[kWaveRows * W];
    V cosines[kGroup], sines[kGroup];
    for (int j = 0; j < n; j += W) {
      waves(x + j, ld, m, step, c1, s1);
      for (int first = 0; first < knots; first += kGroup) {
        if (first == 0) group<true>(c1, s1, m, c, s, cosines, sines);
        else group<false>(c1, s1, m, c, s, cosines, sines);
        for (int k = 0; k < kGroup && first + k < knots; k++) {
          add_lanes(cosines[k], sums + int64_t(first + k) * ld + j);
          add_lanes(sines[k], sums + int64_t(knots + first + k) * ld + j);
        }
      }
    }
  }

  // Re sum_k (b_k + i a_k) e^(i (k + 1) w), w = step x, by Horner's rule, for R rows.
  template <int R>
  static void horner(const T* c1, const T* s1, int knots, int ld, const T* b, const T* a, T* x) {
    V c[R], s[R], re[R], im[R];
    const V last = L::load(b + int64_t(knots - 1) * ld), turned = L::load(a + int64_t(knots - 1) * ld);
    for (int r = 0; r < R; r++) c[r] = L::load(c1 + r * W), s[r] = L::load(s1 + r * W), re[r] = last, im[r] = turned;
    for (int k = knots - 2; k >= 0; k--) {
      const V p = L::load(b + int64_t(k) * ld), q = L::load(a + int64_t(k) * ld);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const V next = re[r] * c[r] + (p - im[r] * s[r]);
        im[r] = im[r] * c[r] + (re[r] * s[r] + q);
        re[r] = next;
      }
    }
    for (int r = 0; r < R; r++) L::store(x + int64_t(r) * ld, re[r] * c[r] - im[r] * s[r]);
  }

  static void slope(T* x, int ld, int m, int n, double step, int knots, const T* factors) {
    T c1[kWaveRows * W], s1[kWaveRows * W];
    const T *b = factors, *a = factors + int64_t(knots) * ld;
    for (int j = 0; j < n; j += W) {
      waves(x + j, ld, m, step, c1, s1);
      int i = 0;
      for (; i + kTogether <= m; i += kTogether)
        horner<kTogether>(c1 + i * W, s1 + i * W, knots, ld, b + j, a + j, x + int64_t(i) * ld + j);
      for (; i < m; i++) horner<1>(c1 + i * W, s1 + i * W, knots, ld, b + j, a + j, x + int64_t(i) * ld + j);
    }
  }

  static inline void exchange(T* keys, int32_t* places, int64_t i, int64_t j) {
    const V a = L::load(keys + i * W), b = L::load(keys + j * W);
    if constexpr (W == 1) {
      if (a > b) {
        keys[i] = b, keys[j] = a;
        const int32_t place = places[i];
        places[i] = places[j], places[j] = place;
      }
    } else {
      const I p = L::load_id(places + i * W), q = L::load_id(places + j * W), larger = a > b;
      L::store(keys + i * W, larger ? b : a), L::store(keys + j * W, larger ? a : b);
      L::store_id(places + i * W, larger ? q : p), L::store_id(places + j * W, larger ? p : q);
    }
  }

  // Batcher's odd-even merge sort of m rows, every lane by itself: the exchanges do not depend on the data.
  static void sort(T* keys, int32_t* places, int64_t m) {
    for (int64_t p = 1; p < m; p *= 2)
      for (int64_t k = p; k >= 1; k /= 2)
        for (int64_t j = k % p; j + k < m; j += 2 * k)
          for (int64_t i = j; i < j + k && i + k < m; i++)
            if (i / (2 * p) == (i + k) / (2 * p)) exchange(keys, places, i, i + k);
  }

  static double match(T* x, int ld, int m, int n, const T* q, T factor, bool slopes, T* keys, int32_t* places) {
    double total = 0.0;
    for (int j = 0; j < n; j += W) {
      for (int64_t i = 0; i < m; i++)
        for (int l = 0; l < W; l++) keys[i * W + l] = x[i * ld + j + l], places[i * W + l] = int32_t(i);
      sort(keys, places, m);
      double squares[W] = {};
      for (int64_t i = 0; i < m; i++)
        for (int l = 0; l < W; l++) {
          const T error = keys[i * W + l] - q[i];
          squares[l] += double(error) * double(error);
          if (slopes) x[int64_t(places[i * W + l]) * ld + j + l] = factor * error;
        }
      for (int l = 0; l < W && j + l < n; l++) total += squares[l];
    }
    return total;
  }

  // log u for u in (0, 1]: 2 atanh((m - 1) / (m + 1)) + e log 2, u = m 2^e, m from 1 / sqrt 2 to sqrt 2.
  static inline void logarithms(const T* u, T* log) {
    if constexpr (W == 1) {
      log[0] = std::log(u[0]);
    } else {
      const V v = L::load(u);
      const I bits = (I)v - 0x3F3504F3;  // 1 / sqrt 2
      const I e = bits >> 23;
      const V m = (V)((I)v - (e << 23)), s = (m - T(1)) / (m + T(1)), t = s * s;
      V p = L::all(T(2.0 / 11));
      p = p * t + T(2.0 / 9);
      p = p * t + T(2.0 / 7);
      p = p * t + T(2.0 / 5);
      p = p * t + T(2.0 / 3);
      L::store(log, (p * t + T(2)) * s + __builtin_convertvector(e, V) * T(0.693147180559945309));
    }
  }

  static void normal(uint32_t block, uint32_t first, uint32_t stream, uint64_t seed, int rows, int n, int ld, T* g, T* squares) {
    constexpr T kUnit = T(1) / T(1 << 24);
    for (int j = 0; j < n; j += W) {
      T u[4][W], log[W], c[W], s[W], turn[W];
      for (int l = 0; l < W; l++) {
        const Words words = philox({{block, first + uint32_t(j + l), stream, 0u}}, seed);
        for (int w = 0; w < 4; w++) u[w][l] = T((words.word[w] >> 8) + 1) * kUnit;
      }
      for (int pair = 0; pair < 2; pair++) {
        logarithms(u[2 * pair], log);
        for (int l = 0; l < W; l++) turn[l] = u[2 * pair + 1][l];
        waves(turn, W, 1, 6.28318530717958647692, c, s);
        for (int half = 0; half < 2; half++) {
          const int row = 2 * pair + half;
          for (int l = 0; l < W; l++) {
            const T value = std::sqrt(T(-2) * log[l]) * (half ? s[l] : c[l]);
            g[int64_t(row) * ld + j + l] = value;
            if (row < rows) squares[j + l] += value * value;
          }
        }
      }
    }
  }

  static constexpr Sketches<T> table{W, add_waves, slope, match, normal};
};

inline constexpr Sketches<float> float_sketches = SketchFunctions<FloatLane>::table;
