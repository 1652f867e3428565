// The table that a multi-tensor kernel walks through. It has a record for each tensor and one for each chunk, the elements that one
// block of threads takes. The table is built on the host and kept on the device (cuda/tables.cpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dtypes.h"

namespace fastssl {

constexpr int kMostLists = 7;

// The tensors at one position of every list of a call: list l has data[l] of dtype[l], or kNothing. All have `count` elements in
// the same order in memory.
struct TensorRecord {
  void* data[kMostLists];
  int64_t count;
  Dtype dtype[kMostLists];
  uint8_t adapt;        // whether LARS scales the step by norms
  double weight_decay;  // for optimizers only
};
static_assert(sizeof(TensorRecord) == 80, "compared byte by byte: no padding");

struct ChunkRecord {
  int32_t tensor, index;  // elements index * kChunkElements .. of the tensor
};

// A chunk is 32 KB of float32, so that a ResNet-50 has 3,200 chunks for the 132 multiprocessors of an H200. The number is a
// multiple of 8, because eight elements share a call of Philox.
constexpr int64_t kChunkElements = 8192;

struct TableView {
  const TensorRecord* tensors;
  const ChunkRecord* chunks;
};

inline std::vector<ChunkRecord> chunks_of(const std::vector<TensorRecord>& tensors) {
  std::vector<ChunkRecord> chunks;
  for (std::size_t t = 0; t < tensors.size(); t++)
    for (int64_t begin = 0; begin < tensors[t].count; begin += kChunkElements)
      chunks.push_back({int32_t(t), int32_t(begin / kChunkElements)});
  return chunks;
}

}  // namespace fastssl
