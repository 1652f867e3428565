#include "cuda/block_mask_kernel.cuh"

namespace fastssl {

void launch_block_mask(const BlockMaskCall& call, CUstream_st* stream) {
  const int64_t blocks = (call.N + call.samples - 1) / call.samples;
  block_mask_kernel<<<unsigned(blocks), kBlockMaskThreads, 0, stream>>>(call);
}

}  // namespace fastssl
