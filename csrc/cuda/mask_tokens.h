// What the kernel of masked language modelling is called with.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace fastssl {

constexpr int kTokenThreads = 256;

struct MaskTokensCall {
  const int64_t* ids;   // (N, L), as all here
  const bool* special;  // null: none
  const int64_t* seed;  // (), read on the device
  int64_t *inputs, *labels;
  int64_t N, L, mask_id, vocab_size, hide, swap, pick, ignore_index;
};

void launch_mask_tokens(const MaskTokensCall& call, CUstream_st* stream);

}  // namespace fastssl
