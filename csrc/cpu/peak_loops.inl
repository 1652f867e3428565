// The loops that are timed to find a peak (peak.h), for one Unit: an instruction that multiplies and adds. There is no include
// guard, since each inclusion makes new functions.
//   Unit::V      a register of sums; Unit::Word what a product takes of A at once; a register of B holds kWords of them
//   Unit::kRows  rows of A in a panel, as many as leave all sums in registers; Unit::kFlops  of one instruction

// kChains multiply-adds a round, each on a register of its own, so that none waits for another. Returns the FLOPs.
template <class Unit>
static int64_t in_registers(int64_t rounds) {
  constexpr int kChains = Unit::kRows == 12 ? 20 : 12;
  typename Unit::V sum[kChains], kept[kChains];
  const auto a = Unit::filled(0.5f), b = Unit::filled(1.0f);
#pragma GCC unroll 32
  for (int i = 0; i < kChains; i++) sum[i] = Unit::filled(float(i));
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; i++) sum[i] = Unit::again(sum[i], a, b);
  }
#pragma GCC unroll 32
  for (int i = 0; i < kChains; i++) kept[i] = sum[i];
  asm volatile("" ::"r"(kept) : "memory");  // somebody may read them, so they must be computed
  return rounds * kChains * Unit::kFlops;
}

// C (M, N) = A B (M, K) (K, N) from packed panels: kRows rows of A, two registers of columns of B, as a matrix product has them.
// A, B and C take 216 KiB: less than any L2, more than any L1.
template <class Unit>
struct Tile {
  using Word = typename Unit::Word;
  static constexpr int kRows = Unit::kRows, kColumns = 2 * Unit::kWords;
  static constexpr int kM = 96, kN = 128 * 4 / sizeof(Word), kK = 192;
  static constexpr int64_t kBytes = (kM * kK + kK * kN + kM * kN) * int64_t(sizeof(Word));
  static_assert(kM % kRows == 0 && kN % kColumns == 0);

  static void panel(const Word* a, const Word* b, Word* c) {
    typename Unit::V sum[kRows][2] = {};
    for (int k = 0; k < kK; k++, a += kRows, b += kColumns) {
      const auto left = Unit::load(b), right = Unit::load(b + Unit::kWords);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; i++) {
        const auto x = Unit::each(a[i]);
        sum[i][0] = Unit::add(sum[i][0], x, left);
        sum[i][1] = Unit::add(sum[i][1], x, right);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      Unit::store(c + i * kN, sum[i][0]);
      Unit::store(c + i * kN + Unit::kWords, sum[i][1]);
    }
  }

  // `rounds` products in `room`, which holds A, B and C. Returns the FLOPs.
  static int64_t multiply(void* room, int64_t rounds) {
    auto* const a = static_cast<Word*>(room);
    Word *const b = a + kM * kK, *const c = b + kK * kN;
    for (int64_t r = 0; r < rounds; r++)
      for (int j = 0; j < kN; j += kColumns)
        for (int i = 0; i < kM; i += kRows) panel(a + i * kK, b + j * kK, c + i * kN + j);
    return rounds * (int64_t(kM) * kN * kK / Unit::kWords) * Unit::kFlops;
  }
};

template <class Unit>
static PeakLoops loops(const char* dtype, const std::string& unit) {
  return {dtype, unit, in_registers<Unit>, Tile<Unit>::multiply, Tile<Unit>::kBytes};
}
