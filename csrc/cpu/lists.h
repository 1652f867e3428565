// Lists of arrays for the updates: loops over chunks of all of them, small and large ones alike.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/list_calls.h"
#include "cpu/parallel.h"
#include "cpu/updates.h"

namespace fastssl {

// The array at position t, or kNothing where the list is empty.
inline Array array_of(Arrays list, size_t t) {
  if (list.empty()) return {nullptr, kNothing};
  return list[t].array;
}

// 32,768 elements, which are 256 KB of two float32 lists and take a few microseconds. A multiple of 8, because eight elements share
// a call of Philox.
constexpr int64_t kChunk = 1 << 15;

// Calls task(t, offset, count) for every chunk of the arrays, in parallel; which thread does a chunk changes no bit.
template <class F>
void for_each_chunk(Arrays arrays, const F& task) {
  struct Chunk {
    size_t t;
    int64_t offset, count;
  };
  std::vector<Chunk> chunks;
  int64_t elements = 0;
  for (size_t t = 0; t < arrays.size(); t++)
    for (int64_t begin = 0, total = arrays[t].numel; begin < total; begin += kChunk) {
      chunks.push_back({t, begin, std::min(kChunk, total - begin)});
      elements += chunks.back().count;
    }
  const int64_t count = int64_t(chunks.size());
  parallel_for(count, count ? elements / count : 0, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) task(chunks[c].t, chunks[c].offset, chunks[c].count);
  });
}

}  // namespace fastssl
