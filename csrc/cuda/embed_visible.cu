#include "cuda/embed_visible_kernel.cuh"

namespace fastssl {

void launch_visible_patches(const VisibleCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix + call.kept));
  if (blocks == 0) return;
  with_group(call.kind, [&](auto g) { launch(visible_patches_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_visible_patches_grad(const VisibleGradCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * call.grid.length);
  with_group(call.dpatches.kind,
             [&](auto g) { launch(visible_patches_grad_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_visible_positions(const PositionsCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix_rows + call.kept));
  if (blocks == 0) return;
  with_group(call.kind,
             [&](auto g) { launch(visible_positions_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

}  // namespace fastssl
