#include "cuda/patch_loss_kernel.cuh"

namespace fastssl {

void launch_patch_loss(const PatchLossCall& call, CUstream_st* stream) {
  const dim3 block{unsigned(call.warps * kWarp)};
  with_group(call.pred.kind,
             [&](auto g) { launch(patch_loss_kernel<decltype(g)::value>, {unsigned(call.blocks)}, block, stream, call); });
  if (call.pred.kind == kFloat64) launch(finish_loss_kernel<double>, {1}, {kFinishThreads}, stream, call);
  else launch(finish_loss_kernel<float>, {1}, {kFinishThreads}, stream, call);
}

void launch_patch_loss_grad(const PatchLossCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * call.rows, call.warps);
  if (blocks == 0) return;
  const dim3 block{unsigned(call.warps * kWarp)};
  with_group(call.pred.kind, [&](auto g) { launch(patch_loss_grad_kernel<decltype(g)::value>, {blocks}, block, stream, call); });
}

}  // namespace fastssl
