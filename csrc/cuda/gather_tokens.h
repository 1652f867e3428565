// What the kernels that take rows by ids, and bring gradients back, are called with.
#pragma once
#include "cuda/rows.h"

namespace fastssl {

// out (samples, count, width) <- rows ids (samples, count) of x (samples, length, width).
struct GatherCall {
  RowsView x;
  const int64_t* ids;
  void* out;
  int64_t samples, count, length, width;
};

// out (samples, prefix + length, width): the first `prefix` rows of dout, then row l the sum of rows prefix + k with ids[k] = l,
// of dout (samples, prefix + count, width) and ids (samples, count).
struct ScatterCall {
  RowsView dout;
  const int64_t* ids;
  void* out;
  int64_t samples, prefix, count, length, width;
};

void launch_gather(const GatherCall& call, CUstream_st* stream);
void launch_scatter(const ScatterCall& call, CUstream_st* stream);

}  // namespace fastssl
