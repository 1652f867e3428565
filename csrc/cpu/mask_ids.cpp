// The order of the keys of each sample, its inverse and the mask: rank_i = #{j : (key_j, j) < (key_i, i)}.
//   keys (N, L): noise, or Philox words; ids_shuffle, ids_restore (N, L) int64, mask (N, L) float32 = [rank >= keep]
// Up to 256 keys are ordered by a sorting network on the machine's vector registers (mask_rows.inl). More of them, and keys that
// are nearly all equal, take a stable sort by digits of 8 bits, least significant first: 4 passes over (key, index) pairs in the
// first-level cache.
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/mask_rows.h"
#include "cpu/parallel.h"

namespace fastssl::mask_ids {
namespace {

template <class Key>
struct Pair {
  Key key;
  uint32_t index;
};

// Sorts `pairs`, which stand in the order of their index, by key; the sort is stable, and `other` is as large. Returns the result.
template <class Key>
const Pair<Key>* sorted(std::vector<Pair<Key>>& pairs, std::vector<Pair<Key>>& other) {
  constexpr int kDigits = sizeof(Key);
  std::array<std::array<uint32_t, 256>, kDigits> count{};
  for (const auto& pair : pairs)
    for (int d = 0; d < kDigits; d++) count[d][uint8_t(pair.key >> (8 * d))]++;
  Pair<Key>*from = pairs.data(), *to = other.data();
  for (int d = 0; d < kDigits; d++) {
    auto& place = count[d];
    if (place[uint8_t(from[0].key >> (8 * d))] == pairs.size()) continue;  // all keys have the same digit
    uint32_t before = 0;
    for (uint32_t& each : place) before += std::exchange(each, before);
    for (size_t i = 0; i < pairs.size(); i++) to[place[uint8_t(from[i].key >> (8 * d))]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

struct Result {
  int64_t *shuffle, *restore;
  float* mask;
  int64_t length, keep;
};

bool order_few(const MaskRows& rows, const uint32_t* keys, int n, uint8_t* order) { return rows.order(keys, n, order); }
bool order_few(const MaskRows& rows, const uint64_t* keys, int n, uint8_t* order) { return rows.order_wide(keys, n, order); }

// The keys of one sample and what ordering them takes.
template <class Key>
struct Sample {
  std::vector<Key> keys;
  std::vector<Pair<Key>> pairs, other;

  explicit Sample(int64_t length) : keys(length) {}

  void write(const Result& result, int64_t n, const MaskRows& rows) {
    const int64_t length = result.length;
    int64_t *shuffle = result.shuffle + n * length, *restore = result.restore + n * length;
    float* mask = result.mask + n * length;
    uint8_t few[kFewKeys];
    if (length <= kFewKeys && order_few(rows, keys.data(), int(length), few))
      return rows.write(few, int(length), result.keep, shuffle, restore, mask);
    pairs.resize(length), other.resize(length);
    for (int64_t i = 0; i < length; i++) pairs[i] = {keys[i], uint32_t(i)};
    const Pair<Key>* order = sorted(pairs, other);
    for (int64_t rank = 0; rank < length; rank++) {
      const uint32_t i = order[rank].index;
      shuffle[rank] = i, restore[i] = rank, mask[i] = rank >= result.keep;
    }
  }
};

// Ranks the keys of each row; fill(row, keys) makes the keys.
template <class Key, class F>
void order_rows(int64_t rows, const Result& result, const F& fill) {
  parallel_for(rows, 2 * result.length, [&](int64_t begin, int64_t end) {
    Sample<Key> sample(result.length);
    for (int64_t n = begin; n < end; n++) {
      fill(n, sample.keys.data());
      sample.write(result, n, mask_rows());
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> mask_ids(const OptionalTensor& noise, const OptionalTensor& seed, int64_t rows, int64_t length,
                                            int64_t keep) {
  FASTSSL_CHECK_VALUE(length < std::numeric_limits<uint32_t>::max(), "mask_ids: size must be below 2^31, got ", length);
  FASTSSL_CHECK(
      rows >= 0 && length > 0 &&
          (noise ? noise->sizes().equals({rows, length}) : seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long),
      "mask_ids: bad size, noise or seed");
  Tensor shuffle = empty({rows, length}, ScalarType::Long), restore = empty({rows, length}, ScalarType::Long);
  Tensor mask = empty({rows, length}, ScalarType::Float);
  const Result result{shuffle.mutable_data_ptr<int64_t>(), restore.mutable_data_ptr<int64_t>(), mask.mutable_data_ptr<float>(),
                      length, keep};
  const MaskRows& of = mask_rows();
  if (!noise) {
    const uint64_t key = uint64_t(as_int64(*seed));
    order_rows<uint32_t>(rows, result, [&](int64_t n, uint32_t* keys) { of.draw(key, uint32_t(n), length, keys); });
    return {shuffle, restore, mask};
  }
  const Tensor dense = as_contiguous(*noise);
  const Array values = array_of(dense);
  if (values.dtype == kFloat64)
    order_rows<uint64_t>(rows, result, [&](int64_t n, uint64_t* keys) { of.read_wide(values, n * length, length, keys); });
  else order_rows<uint32_t>(rows, result, [&](int64_t n, uint32_t* keys) { of.read(values, n * length, length, keys); });
  return {shuffle, restore, mask};
}

}  // namespace
}  // namespace fastssl::mask_ids

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("mask_ids", TORCH_BOX(&fastssl::mask_ids::mask_ids)); }
