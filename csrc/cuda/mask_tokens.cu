#include "cuda/mask_tokens_kernel.cuh"

namespace fastssl {

void launch_mask_tokens(const MaskTokensCall& call, CUstream_st* stream) {
  constexpr int64_t kMost = 4096;  // blocks: an H200 has 1056 at a time
  const int64_t blocks = (call.N * ((call.L + 3) / 4) + kTokenThreads - 1) / kTokenThreads;
  mask_tokens_kernel<<<unsigned(blocks < kMost ? blocks : kMost), kTokenThreads, 0, stream>>>(call);
}

}  // namespace fastssl
