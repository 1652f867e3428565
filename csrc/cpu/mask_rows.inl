// The functions of mask_rows.h for one instruction set, compiled by each_isa.h.
//
// Up to 256 keys are ordered by a sorting network on 32-bit numbers that hold the first 24 bits of a key and its 8-bit index, so
// that no two are equal and indices move with their keys. Keys that agree in their first 24 bits are put right afterwards. The
// numbers stand in columns, number e = lane R + r in lane `lane` of register r of R: most exchanges are then a minimum and a
// maximum of two registers, and only those between columns move numbers within a register.

#define FASTSSL_FN static inline
#include "common/elements.h"
#include "common/masking.h"
#include "common/philox.h"
#undef FASTSSL_FN
#include "cpu/arrays.inl"

constexpr int kLanes = FASTSSL_WIDTH;
typedef int32_t Numbers __attribute__((vector_size(4 * FASTSSL_WIDTH), aligned(4), may_alias));
using LaneIndices = std::make_integer_sequence<int, kLanes>;

static inline __attribute__((always_inline)) Numbers smaller(Numbers a, Numbers b) { return a < b ? a : b; }
static inline __attribute__((always_inline)) Numbers larger(Numbers a, Numbers b) { return a > b ? a : b; }

// The number of lane ^ D in each lane.
template <int D, int... I>
static inline __attribute__((always_inline)) Numbers across(Numbers v, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (I ^ D)...);
#else
  return __builtin_shuffle(v, Numbers{(I ^ D)...});
#endif
}
// From `low` in lanes without bit H, from `high` in the others.
template <int H, int... I>
static inline __attribute__((always_inline)) Numbers by_lane(Numbers low, Numbers high, std::integer_sequence<int, I...>) {
  return Numbers{((I & H) ? -1 : 0)...} ? high : low;
}

static inline __attribute__((always_inline)) void exchange(Numbers& a, Numbers& b) {
  const Numbers least = smaller(a, b);
  b = larger(a, b), a = least;
}

// Exchanges registers r and r ^ D: the smaller numbers go to the lower one.
template <int R, int D>
static inline __attribute__((always_inline)) void exchange_registers(Numbers* v) {
  constexpr int kTop = (D + 1) / 2 > 0 && (D & (D + 1)) == 0 ? (D + 1) / 2 : D;  // the highest bit of D
#pragma GCC unroll 16
  for (int i = 0; i < R / 2; i++) {
    const int r = i / kTop * 2 * kTop + i % kTop;
    exchange(v[r], v[r ^ D]);
  }
}

// The last part of a merge: distances D, D / 2, ... 1 between registers.
template <int R, int D>
static inline __attribute__((always_inline)) void merge_registers(Numbers* v) {
  if constexpr (D > 0) {
    exchange_registers<R, D>(v);
    merge_registers<R, D / 2>(v);
  }
}

// Sorts each column: runs of K / 2 registers are merged to runs of K, up to R.
template <int R, int K>
static inline __attribute__((always_inline)) void sort_columns(Numbers* v) {
  if constexpr (K <= R) {
    exchange_registers<R, K - 1>(v);
    merge_registers<R, K / 4>(v);
    sort_columns<R, 2 * K>(v);
  }
}

// Distances D, D / 2, ... 1 between lanes.
template <int R, int D>
static inline __attribute__((always_inline)) void merge_lanes(Numbers* v) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Numbers other = across<D>(v[r], LaneIndices());
      v[r] = by_lane<D>(smaller(v[r], other), larger(v[r], other), LaneIndices());
    }
    merge_lanes<R, D / 2>(v);
  }
}

// Merges sorted runs of M / 2 columns to runs of M, up to all of them. The first step compares each run with the reverse of the
// next.
template <int R, int M>
static inline __attribute__((always_inline)) void merge_columns(Numbers* v) {
  if constexpr (M <= kLanes) {
#pragma GCC unroll 16
    for (int r = 0; r < R / 2; r++) {
      Numbers &a = v[r], &b = v[R - 1 - r];
      const Numbers from_a = across<M - 1>(a, LaneIndices()), from_b = across<M - 1>(b, LaneIndices());
      a = by_lane<M / 2>(smaller(a, from_b), larger(a, from_b), LaneIndices());
      b = by_lane<M / 2>(smaller(b, from_a), larger(b, from_a), LaneIndices());
    }
    merge_lanes<R, M / 4>(v);
    merge_registers<R, R / 2>(v);
    merge_columns<R, 2 * M>(v);
  }
}

// Sorts the first n of P numbers, in place; the others must be the largest.
template <int P>
static __attribute__((noinline)) void sort_numbers(int32_t* numbers, int n) {
  constexpr int R = P / kLanes;
  Numbers v[R];
  for (int r = 0; r < R; r++) v[r] = *reinterpret_cast<const Numbers*>(numbers + r * kLanes);
  sort_columns<R, 2>(v);
  merge_columns<R, 2>(v);
  int32_t columns[P];
  for (int r = 0; r < R; r++) *reinterpret_cast<Numbers*>(columns + r * kLanes) = v[r];
  for (int lane = 0; lane * R < n; lane++)
    for (int r = 0; r < R; r++) numbers[lane * R + r] = columns[r * kLanes + lane];
}

static inline int32_t first_bits(uint32_t key) { return int32_t(key ^ 1u << 31); }
static inline int32_t first_bits(uint64_t key) { return int32_t(uint32_t(key >> 32) ^ 1u << 31); }

// Whether keys that agree in their first 24 bits are equal: the last 8 bits repeat the sign, as those of 16-bit noise do.
static inline int32_t beyond(uint32_t key) {
  const int32_t bits = first_bits(key);
  return (bits ^ bits >> 31) & 255;
}
static inline int32_t beyond(uint64_t) { return 1; }

// Near keys are put right by insertion; where there are more of them than so many the sort by digits is faster.
constexpr int kNear = 32;
// How many keys the network sorts faster than that sort: SSE2 has neither minimum nor maximum of such numbers.
#if defined(__x86_64__)
constexpr int kFew = kLanes == 4 ? 128 : kFewKeys;
#else
constexpr int kFew = kFewKeys;
#endif

template <class Key>
static bool order_keys(const Key* keys, int n, uint8_t* order) {
  if (n > kFew) return false;
  int32_t numbers[kFew], rest = 0;
  for (int i = 0; i < n; i++) {
    numbers[i] = (first_bits(keys[i]) & ~255) | i;
    rest |= beyond(keys[i]);
  }
  const int places = n <= 64 ? 64 : n <= 128 ? 128 : kFew;
  for (int i = n; i < places; i++) numbers[i] = 0x7FFFFF00 | i;
  if (places == 64) sort_numbers<64>(numbers, n);
  else if (places == 128) sort_numbers<128>(numbers, n);
  else sort_numbers<kFew>(numbers, n);
  int near = 0;
  for (int i = 1; i < n; i++) near += uint32_t(numbers[i] ^ numbers[i - 1]) < 256u;
  for (int i = 0; i < n; i++) order[i] = uint8_t(numbers[i]);
  if (near == 0 || rest == 0) return true;
  if (near > kNear) return false;
  for (int i = 1; i < n; i++)
    for (int k = i; k > 0 && keys[order[k - 1]] > keys[order[k]]; k--) {
      const uint8_t moved = order[k];
      order[k] = order[k - 1], order[k - 1] = moved;
    }
  return true;
}

static void read_keys(Array noise, int64_t i, int64_t n, uint32_t* keys) {
  for (int64_t first = 0; first < n; first += kBlock) {
    const int count = int(n - first < kBlock ? n - first : kBlock);
    float buffer[kBlock];
    const float* values = widened(noise, i + first, count, buffer);
    for (int e = 0; e < count; e++) keys[first + e] = ordered_key(values[e]);
  }
}

static void read_wide_keys(Array noise, int64_t i, int64_t n, uint64_t* keys) {
  const double* values = static_cast<const double*>(at(noise, i));
  for (int64_t e = 0; e < n; e++) keys[e] = ordered_key(values[e]);
}

static void draw_keys(uint64_t seed, uint32_t sample, int64_t n, uint32_t* keys) {
  for (int64_t i = 0; i < n; i += 4) {
    const Words words = philox({{uint32_t(i / 4), sample, kMaskStream, 0u}}, seed);
    for (int64_t k = 0; k < 4 && i + k < n; k++) keys[i + k] = words.word[k];
  }
}

static void write_row(const uint8_t* order, int n, int64_t keep, int64_t* shuffle, int64_t* restore, float* mask) {
  uint8_t rank[kFewKeys];
  for (int r = 0; r < n; r++) rank[order[r]] = uint8_t(r);
  for (int r = 0; r < n; r++) shuffle[r] = order[r];
  for (int i = 0; i < n; i++) restore[i] = rank[i];
  for (int i = 0; i < n; i++) mask[i] = rank[i] >= keep;
}

static constexpr MaskRows rows = {read_keys, read_wide_keys, draw_keys, order_keys<uint32_t>, order_keys<uint64_t>, write_row};
