// What the kernel of block-wise masks is called with.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace fastssl {

// Threads of a block, and how many of these draw, one sample each. They are few, because the samples of one warp wait for one
// another.
constexpr int kBlockMaskThreads = 32, kBlockMaskSamples = 8;
constexpr int kBlockMaskWords = 8192;  // 32-bit words of shared memory for the masks of a block's samples: 512 x 512 patches

struct BlockMaskCall {
  const int64_t* num_masked;  // (N,)
  const int64_t* seed;        // (), read on the device
  const float* aspects;       // (T,)
  bool* mask;                 // (N, H, W)
  int64_t N;
  int T, H, W, min_block, max_block, attempts;
  bool exact;
  int words;    // of the mask of a sample: H ceil(W / 32)
  int samples;  // of a block
};

void launch_block_mask(const BlockMaskCall& call, CUstream_st* stream);

}  // namespace fastssl
