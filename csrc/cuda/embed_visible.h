// What the kernels around the embedding of visible patches are called with.
#pragma once
#include "cuda/rows.h"

namespace fastssl {

// Forward: out (samples, prefix + kept, entries) of `dtype` <- patches of the images; the rows of the prefix are 0.
struct VisibleCall {
  const void* images;
  Dtype image_dtype, dtype;
  PatchGrid grid;
  const int64_t* ids;  // (samples, kept)
  void* out;
  int64_t samples, prefix, kept;
};

// Backward: images (samples, C, H, W) of the dtype of dpatches (samples, prefix + kept, entries).
struct VisibleGradCall {
  RowsView dpatches;
  const int64_t* ids;  // (samples, kept)
  void* images;
  PatchGrid grid;
  int64_t samples, prefix, kept;
};

// out (samples, prefix_rows + kept, width): prefix_i + pos_i, then bias + pos_{prefix_rows + id}; all of `dtype`, null where
// absent.
struct PositionsCall {
  const int64_t* ids;  // (samples, kept)
  const void *bias, *pos, *prefix;
  void* out;
  Dtype dtype;
  int64_t samples, prefix_rows, kept, length, width;
};

void launch_visible_patches(const VisibleCall& call, CUstream_st* stream);
void launch_visible_patches_grad(const VisibleGradCall& call, CUstream_st* stream);
void launch_visible_positions(const PositionsCall& call, CUstream_st* stream);

}  // namespace fastssl
