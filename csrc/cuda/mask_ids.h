// What the kernel that ranks the keys of each sample is called with.
#pragma once
#include "cuda/rows.h"

namespace fastssl {

constexpr int64_t kMostRanked = 4096;  // ids of a sample; fastssl/ops/mask_ids.py calls it COUNTED

struct MaskIdsCall {
  const void* noise;  // (rows, length), or null:
  Dtype dtype;
  const int64_t* seed;  // one element on the device
  int64_t rows;
  int length, keep;
  int64_t *shuffle, *restore;  // (rows, length)
  float* mask;                 // (rows, length)
};

void launch_mask_ids(const MaskIdsCall& call, CUstream_st* stream);

}  // namespace fastssl
