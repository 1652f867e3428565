// Inputs and labels of masked language modelling in one launch by common/mask_tokens.h; the seed stays on the device.
// A token costs 24 bytes, 0.7 us for 256 x 512 tokens at the copy bandwidth of an H200: the cost is that of a launch.
//
// A thread takes four tokens of a row that share a call of Philox, then those that lie as many threads further on.
#include "cuda/access.cuh"
#include "cuda/mask_tokens.h"

namespace fastssl {

#define FASTSSL_FN __device__ inline
#include "common/mask_tokens.h"
#undef FASTSSL_FN

__global__ void __launch_bounds__(kTokenThreads) mask_tokens_kernel(MaskTokensCall call) {
  const TokenRule rule{uint64_t(*call.seed), call.mask_id,        call.ignore_index,  uint64_t(call.vocab_size),
                       uint64_t(call.hide),  uint64_t(call.swap), uint64_t(call.pick)};
  const int64_t blocks = (call.L + 3) / 4, step = int64_t(gridDim.x) * kTokenThreads;
  for (int64_t i = int64_t(blockIdx.x) * kTokenThreads + threadIdx.x; i < call.N * blocks; i += step) {
    const int64_t row = i / blocks, block = i % blocks, at = row * call.L + 4 * block, left = call.L - 4 * block;
    mask_four(rule, uint32_t(row), uint32_t(block), left < 4 ? int(left) : 4, call.ids + at,
              call.special ? call.special + at : nullptr, call.inputs + at, call.labels + at);
  }
}

void launch_mask_tokens(const MaskTokensCall& call, CUstream_st* stream) {
  constexpr int64_t kMost = 4096;  // blocks: an H200 has 1056 at a time
  const int64_t blocks = (call.N * ((call.L + 3) / 4) + kTokenThreads - 1) / kTokenThreads;
  launch(mask_tokens_kernel, dim3{unsigned(blocks < kMost ? blocks : kMost)}, dim3{kTokenThreads}, stream, call);
}

}  // namespace fastssl
