// The CUDA source of masks of blocks and of tokens, as kernels.cpp has that of updates.
#include "shim.h"

#define FASTSSL_FMA 1
#include "cuda/block_mask.cu"
#include "cuda/mask_tokens.cu"

using namespace fastssl;

extern "C" {

void block_mask(const int64_t* num_masked, const int64_t* seed, const float* aspects, bool* mask, int64_t N, int T, int H, int W,
                int min_block, int max_block, int attempts, bool exact, int samples) {
  const BlockMaskCall call{num_masked,          seed,   aspects, mask, N, T, H, W, min_block, max_block, attempts, exact,
                           H * ((W + 31) / 32), samples};
  launch_block_mask(call, nullptr);
}

void mask_tokens(const int64_t* ids, const bool* special, const int64_t* seed, int64_t* inputs, int64_t* labels, int64_t N,
                 int64_t L, int64_t mask_id, int64_t vocab_size, int64_t hide, int64_t swap, int64_t pick, int64_t ignore_index,
                 int blocks) {
  const MaskTokensCall call{ids, special, seed, inputs, labels, N, L, mask_id, vocab_size, hide, swap, pick, ignore_index};
  shim::launch({unsigned(blocks)}, {kTokenThreads}, [&] { mask_tokens_kernel(call); });
}
}
