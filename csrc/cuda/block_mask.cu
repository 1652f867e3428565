// Block-wise masks (N, H, W) in one launch by common/block_mask.h; the seed and the numbers of patches stay on the device.
// One byte is written for each patch; the cost is the latency of 10 to 19 attempts, one after another.
//
// A thread draws a sample. The masks have one bit for each patch and lie in shared memory word by word across the samples, so that
// the threads that draw touch different banks. Then all threads of the block write the bytes, side by side.
#include "cuda/access.cuh"
#include "cuda/block_mask.h"

namespace fastssl {

#define FASTSSL_FN __device__ inline
#include "common/block_mask.h"
#undef FASTSSL_FN

__global__ void __launch_bounds__(kBlockMaskThreads) block_mask_kernel(BlockMaskCall call) {
  __shared__ uint32_t bits[kBlockMaskWords];
  const int64_t first = int64_t(blockIdx.x) * call.samples;
  const int drawn_here = threadIdx.x, words = (call.W + 31) / 32;
  if (drawn_here < call.samples && first + drawn_here < call.N) {
    for (int i = 0; i < call.words; i++) bits[i * call.samples + drawn_here] = 0;
    const BlockRule rule{uint64_t(*call.seed), call.aspects,   call.T,        call.H,    call.W,
                         call.min_block,       call.max_block, call.attempts, call.exact};
    mask_blocks({bits + drawn_here, words, call.samples}, rule, uint32_t(first + drawn_here),
                int(call.num_masked[first + drawn_here]));
  }
  __syncthreads();
  const int patches = call.H * call.W;
  const int64_t left = call.N - first, drawn = left < call.samples ? left : call.samples;
  for (int sample = 0; sample < drawn; sample++) {
    const BlockBits mask{bits + sample, words, call.samples};
    bool* to = call.mask + (first + sample) * patches;
    for (int i = threadIdx.x; i < patches; i += kBlockMaskThreads) {
      const int row = i / call.W, column = i % call.W;
      to[i] = word_of(mask, row, column / 32) >> (column % 32) & 1u;
    }
  }
}

void launch_block_mask(const BlockMaskCall& call, CUstream_st* stream) {
  const int64_t blocks = (call.N + call.samples - 1) / call.samples;
  launch(block_mask_kernel, dim3{unsigned(blocks)}, dim3{kBlockMaskThreads}, stream, call);
}

}  // namespace fastssl
