// The products of products.h for one instruction set; each_isa.h compiles this file for each of them, and products.cpp once more
// with FASTSSL_BFLOAT16 for the instruction that multiplies pairs of bfloat16.

#define FASTSSL_FN static inline
#include "common/elements.h"
#undef FASTSSL_FN
#include "cpu/arrays.inl"

// Registers of `W` sums of type T_, and operands that are single numbers.
template <class T_>
struct Single {
  using E = T_;
  using T = T_;
  static constexpr int W = FASTSSL_WIDTH * 4 / int(sizeof(T));
  typedef T V __attribute__((vector_size(4 * FASTSSL_WIDTH), aligned(sizeof(T)), may_alias));
  using Operand = V;
  static inline Operand load(const E* p) { return *reinterpret_cast<const V*>(p); }
  static inline Operand repeat(const E* p) { return *p - V{}; }
  static inline V add(V sum, Operand a, Operand b) { return sum + a * b; }
};

#ifdef FASTSSL_BFLOAT16
struct Pairs {
  using E = BFloat16;
  using T = float;
  static constexpr int W = 16;
  using V = Single<float>::V;
  using Operand = __m512bh;
  static inline Operand load(const E* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static inline Operand repeat(const E* p) {
    int pair;
    __builtin_memcpy(&pair, p, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static inline V add(V sum, Operand a, Operand b) { return (V)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
#endif

template <class U>
struct ProductFunctions {
  using E = typename U::E;
  using T = typename U::T;
  using V = typename U::V;
  static constexpr int W = U::W, kRegisters = 2, kPanel = kRegisters * W;
  // Sums of 8 x 2 registers need 19 registers; there are 16 with SSE2 and AVX2.
#if defined(__aarch64__)
  static constexpr int kRows = 8;
#else
  static constexpr int kRows = FASTSSL_WIDTH == 16 ? 8 : 6;
#endif

  static inline V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static inline void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }

  struct Scale {
    T high, low;
    // Terms that were rounded to bfloat16 have errors far above that of a scale in one number.
    V times(V x) const {
      if (kTerms<E> == 2) return x * high;
      const V part = x * low;  // of an infinite x, it may have the other sign
      return x * high + (part - part == V{} ? part : V{});
    }
  };

  // C of M rows and one whole panel. The loops over sums are unrolled, since the sums would be arrays in memory otherwise.
  template <int M>
  static void block(const Left<E>& a, const E* b, int steps, const Scale& scale, bool add, T* C, int64_t ld) {
    V sum[M][kRegisters];
#pragma GCC unroll 16
    for (int s = 0; s < M * kRegisters; s++) sum[s / kRegisters][s % kRegisters] = V{};
    const E* left = a.data;
    const int64_t row = a.row, step = a.step;
#pragma GCC unroll 8
    for (int r = 0; r < M && add; r++) {  // sums to add to come from a distant cache while the product runs
      __builtin_prefetch(C + r * ld, 1);
      __builtin_prefetch(C + r * ld + kPanel - 1, 1);
    }
    for (int p = 0; p < steps; p++) {
      typename U::Operand right[kRegisters];
#pragma GCC unroll 2
      for (int c = 0; c < kRegisters; c++) right[c] = U::load(b + c * W * kTerms<E>);
#pragma GCC unroll 8
      for (int r = 0; r < M; r++) {
        const auto one = U::repeat(left + r * row);
#pragma GCC unroll 2
        for (int c = 0; c < kRegisters; c++) sum[r][c] = U::add(sum[r][c], one, right[c]);
      }
      left += step;
      b += kPanel * kTerms<E>;
    }
#pragma GCC unroll 16
    for (int s = 0; s < M * kRegisters; s++) {
      T* to = C + s / kRegisters * ld + s % kRegisters * W;
      const V scaled = scale.times(sum[s / kRegisters][s % kRegisters]);
      store(to, add ? load(to) + scaled : scaled);
    }
  }

  using Block = void (*)(const Left<E>&, const E*, int, const Scale&, bool, T*, int64_t);
  static constexpr Block kBlocks[8] = {block<1>, block<2>, block<3>, block<4>, block<5>, block<6>, block<7>, block<8>};

  // C of a panel of which only n columns are wanted.
  static void edge(const Left<E>& a, const E* b, int m, int n, int steps, const Scale& scale, bool add, T* C, int64_t ld) {
    T whole[kRows * kPanel];
    kBlocks[m - 1](a, b, steps, scale, false, whole, kPanel);
    for (int r = 0; r < m; r++)
      for (int j = 0; j < n; j++) C[r * ld + j] = add ? C[r * ld + j] + whole[r * kPanel + j] : whole[r * kPanel + j];
  }

  static void multiply(const Left<E>& a, const E* packed, int m, int n, int k, double factor, bool add, T* C, int64_t ld) {
    const T high = T(factor), low = T(factor - double(high));
    const Scale scale{high, low - low == T(0) ? low : T(0)};
    const int steps = (k + kTerms<E> - 1) / kTerms<E>;
    const int blocks = (m + kRows - 1) / kRows;  // as even as can be: sums of one or two rows would wait for each other
    for (int j = 0; j < n; j += kPanel, packed += int64_t(steps) * kTerms<E> * kPanel)
      for (int block = 0; block < blocks; block++) {
        const int i = int(int64_t(block) * m / blocks), rows = int(int64_t(block + 1) * m / blocks) - i;
        T* to = C + i * ld + j;
        if (n - j >= kPanel) kBlocks[rows - 1](a.from(i), packed, steps, scale, add, to, ld);
        else edge(a.from(i), packed, rows, n - j, steps, scale, add, to, ld);
      }
  }

  // Packing moves units: a number, or a pair of bfloat16.
  using Unit = std::conditional_t<kTerms<E> == 2, uint32_t, E>;
  static constexpr Dtype kStored = kTerms<E> == 2 ? kBFloat16 : sizeof(E) == 8 ? kFloat64 : kFloat32;
  static constexpr int kRun = 16;  // lines that are packed together

  // Terms p, ... of the n columns j, ..., which lie side by side, as one line of a panel, which ends with zeros.
  static void pack_line(const Right& b, int k, int p, int j, int n, Unit* line) {
    const int64_t from = b.first + p * b.step + j * b.column;
    if constexpr (kTerms<E> == 2) {
      const uint16_t* low = static_cast<const uint16_t*>(at(b.array, from));
      if (p + 1 < k)
        for (int c = 0; c < n; c++) line[c] = low[c] | uint32_t(low[c + b.step]) << 16;
      else
        for (int c = 0; c < n; c++) line[c] = low[c];
    } else if constexpr (sizeof(E) == 8) {
      __builtin_memcpy(line, at(b.array, from), n * sizeof(E));
    } else {
      float buffer[kPanel];
      const float* values = widened(b.array, from, n, buffer);
      for (int c = 0; c < n; c++) line[c] = values[c];
    }
    for (int c = n; c < kPanel; c++) line[c] = 0;
  }

  // Units u, ... up to u + count of one column as an array, through `buffer` where they are no such units in memory.
  static const Unit* units(const Right& b, int k, int j, int u, int count, Unit* buffer) {
    const int64_t from = b.first + int64_t(u) * kTerms<E> * b.step + j * b.column;
    if constexpr (kTerms<E> == 2) {
      const uint16_t* low = static_cast<const uint16_t*>(at(b.array, from));
      for (int i = 0; i < count; i++) {
        const bool both = 2 * (u + i) + 1 < k;
        buffer[i] = low[2 * i * b.step] | (both ? uint32_t(low[(2 * i + 1) * b.step]) << 16 : 0);
      }
      return buffer;
    } else if constexpr (sizeof(E) == 8) {
      const double* values = static_cast<const double*>(at(b.array, from));
      for (int i = 0; i < count; i++) buffer[i] = values[i * b.step];
      return buffer;
    } else {
      if (b.step == 1) return widened(b.array, from, count, buffer);
      for (int i = 0; i < count; i++) buffer[i] = *widened(b.array, from + i * b.step, 1, buffer + i);
      return buffer;
    }
  }

  // Units u, ... of the columns j, ... of a panel, `count` of each, to its lines: from memory where they lie side by side there,
  // else from copies, in blocks that are transposed in registers. Columns that are missing in the last panel become zeros.
  static void pack_run(const Right& b, int k, int j, int wide, int u, int count, Unit* out) {
    constexpr int W = Line<Unit>::W;
    const bool dense = b.step == 1 && b.array.dtype == kStored && (u + count) * kTerms<E> <= k;
    for (int c = 0; c < kPanel; c += W, out += W) {
      Unit copies[W][kRun];
      const Unit* from = copies[0];
      int64_t column = sizeof(copies[0]);
      if (dense && c + W <= wide) {
        from = static_cast<const Unit*>(at(b.array, b.first + int64_t(u) * kTerms<E> + (j + c) * b.column));
        column = b.column * bytes_of(b.array.dtype);
      } else {
        for (int r = 0; r < W; r++) {
          Unit buffer[kRun] = {};
          const Unit* units_of = c + r < wide ? units(b, k, j + c + r, u, count, buffer) : buffer;
          for (int i = 0; i < count; i++) copies[r][i] = units_of[i];
        }
      }
      int i = 0;
      for (; i + W <= count; i += W) transpose(from + i, column, out + int64_t(i) * kPanel, kPanel);
      for (; i < count; i++)
        for (int r = 0; r < W; r++)
          __builtin_memcpy(out + int64_t(i) * kPanel + r, reinterpret_cast<const char*>(from + i) + r * column, sizeof(Unit));
    }
  }

  // Rows or columns that are dense in memory are read in its order.
  static void pack(const Right& b, int k, int n, E* packed) {
    const int lines = (k + kTerms<E> - 1) / kTerms<E>;
    Unit* out = reinterpret_cast<Unit*>(packed);
    const auto to = [&](int j, int u) { return out + int64_t(j) * lines + int64_t(u) * kPanel; };
    const auto wide = [&](int j) { return n - j < kPanel ? n - j : kPanel; };
    if (b.column == 1) {
      for (int u = 0; u < lines; u += kRun)
        for (int j = 0; j < n; j += kPanel)
          for (int v = u; v < lines && v < u + kRun; v++) pack_line(b, k, v * kTerms<E>, j, wide(j), to(j, v));
    } else {
      for (int j = 0; j < n; j += kPanel)
        for (int u = 0; u < lines; u += kRun) pack_run(b, k, j, wide(j), u, lines - u < kRun ? lines - u : kRun, to(j, u));
    }
  }

#ifdef FASTSSL_BFLOAT16
  using Narrow = uint16_t __attribute__((vector_size(32)));
  using Wide = uint32_t __attribute__((vector_size(64)));

  // Rounds rows i and i + 1, where the latter exists, of 16 columns, stores them unless `rows` is null, and returns the pairs.
  static inline Wide round_pair(const float* S, int S_ld, int i, int m, int j, E* rows, int64_t ld) {
    __m256i half[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int r = 0; r < 2 && i + r < m; r++) {
      half[r] = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(S + int64_t(i + r) * S_ld + j));
      if (rows) _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + (i + r) * ld + j), half[r]);
    }
    return __builtin_convertvector((Narrow)half[0], Wide) | __builtin_convertvector((Narrow)half[1], Wide) << 16;
  }

  static void round_weights(const float* S, int S_ld, int m, int n, E* rows, E* columns, int64_t ld) {
    for (int i = 0; i < m; i += 2)
      for (int j = 0; j < n; j += 16) {
        const auto pairs = round_pair(S, S_ld, i, m, j, rows, ld);
        if (columns) _mm512_storeu_si512(columns + i * ld + 2 * j, (__m512i)pairs);
      }
  }

  // The same with W^T as rows: 8 pairs of rows by 16 columns are transposed through a block in the first-level cache.
  static void round_weights_across(const float* S, int S_ld, int m, int n, E* rows, E* columns, int64_t ld) {
    for (int j = 0; j < n; j += 16) {
      alignas(64) uint32_t block[8][16];
      for (int p = 0; p < 8; p++) {
        const Wide pairs = 2 * p < m ? round_pair(S, S_ld, 2 * p, m, j, rows, ld) : Wide{};
        _mm512_store_si512(block[p], (__m512i)pairs);
      }
      if (!columns) continue;
      const __m256i place = _mm256_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112);
      for (int c = 0; c < 16; c++) {
        const auto* from = reinterpret_cast<const int*>(&block[0][c]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + (j + c) * ld), _mm256_i32gather_epi32(from, place, 4));
      }
    }
  }
  static constexpr Products<E> table = {kPanel, multiply, pack, round_weights, false};
  static constexpr Products<E> table_across = {kPanel, multiply, pack, round_weights_across, true};
#else
  static constexpr Products<E> table = {kPanel, multiply, pack, nullptr, false};
#endif
};

#ifdef FASTSSL_BFLOAT16
static const Products<BFloat16>& bfloat16_products = ProductFunctions<Pairs>::table;
static const Products<BFloat16>& bfloat16_products_across = ProductFunctions<Pairs>::table_across;
#else
static const Products<float>& float_products = ProductFunctions<Single<float> >::table;
static const Products<double>& double_products = ProductFunctions<Single<double> >::table;
#endif
