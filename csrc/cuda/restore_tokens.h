// What the kernels that bring tokens back to their places are called with.
#pragma once
#include "cuda/rows.h"

namespace fastssl {

struct RestoreCall {
  RowsView x;  // (samples, prefix + kept, width)
  const int64_t* ids_restore;
  const void *mask_token, *pos;  // (width,), (prefix + length, width) or null, both of `dtype`
  void* out;                     // (samples, prefix + length, width)
  Dtype dtype;
  int64_t samples, prefix, kept, length, width;
};

// Rows are added in chunks, one chunk for each block; where there is one chunk, its sum is the result.
constexpr int64_t kMostChunks = 256;
constexpr int64_t kChunkRows = 64;

// out (chunks, width) <- sums of the rows of `rows` whose id is not in [0, kept), of all rows where ids is null.
struct SumCall {
  RowsView rows;       // (samples, length, width)
  const int64_t* ids;  // (samples, length)
  void* out;           // float32, or float64 where the rows are
  int64_t samples, length, kept, width, chunks;
};
inline int64_t chunks_of_rows(int64_t rows) {
  const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  return chunks < 1 ? 1 : chunks < kMostChunks ? chunks : kMostChunks;
}

void launch_restore(const RestoreCall& call, CUstream_st* stream);
// `partial` (chunks, width) like out; null where there is one chunk.
void launch_sum(const SumCall& call, void* partial, CUstream_st* stream);

}  // namespace fastssl
