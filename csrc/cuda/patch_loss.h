// What the kernels of MAE's loss are called with.
#pragma once
#include "cuda/rows.h"

namespace fastssl {

// loss, total, stats and grad are float32, or float64 where pred is. pred has rows (samples, rows, grid.entries).
struct PatchLossCall {
  const void* images;
  Dtype image_dtype;
  PatchGrid grid;
  RowsView pred;
  const float* mask;   // (samples, rows), or null:
  const int64_t* ids;  // (samples, rows), patches of weight 1
  int64_t samples, rows;
  bool channels_last, normalize, absolute;
  double eps;
  int warps;    // of a block
  bool staged;  // the target of a row fits in its warp's share of shared memory
  void* stats;  // (samples, rows, 2): mean and 1 / sqrt(var + eps); null unless normalised
  // forward
  double* partial;  // (blocks, 2): weighted loss, weight
  int64_t blocks;
  void *loss, *total;
  // backward, which reads the total
  const void* grad;
  void* dpred;
};

// Shared memory of a block for targets, few long patches or many short ones: a warp gets what a patch needs, or nothing.
constexpr int64_t kStagedBytes = 32 << 10;
inline void set_staging(PatchLossCall& call) {
  const int64_t bytes = call.grid.entries * (call.pred.dtype == kFloat64 ? 8 : 4);
  call.warps = kRowWarps;
  while (call.warps > 1 && call.warps * bytes > kStagedBytes) call.warps /= 2;
  call.staged = call.warps * bytes <= kStagedBytes;
  if (!call.staged) call.warps = kRowWarps;
}

// Blocks whose sums one block adds: few enough for that, enough to fill a GPU many times.
constexpr int64_t kMostLossBlocks = 1 << 14;
inline int64_t loss_blocks(const PatchLossCall& call) { return blocks_of(call.samples * call.rows, call.warps, kMostLossBlocks); }

void launch_patch_loss(const PatchLossCall& call, CUstream_st* stream);
void launch_patch_loss_grad(const PatchLossCall& call, CUstream_st* stream);

}  // namespace fastssl
