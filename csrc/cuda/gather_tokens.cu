#include "cuda/gather_tokens_kernel.cuh"

namespace fastssl {

void launch_gather(const GatherCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * call.count);
  if (blocks == 0) return;
  with_group(call.x.kind, [&](auto g) { launch(gather_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_scatter(const ScatterCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix + call.length));
  if (blocks == 0) return;
  with_group(call.dout.kind, [&](auto g) { launch(scatter_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

}  // namespace fastssl
