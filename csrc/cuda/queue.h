// What the kernel that pushes keys is called with.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace fastssl {

constexpr int kTile = 32, kTileRows = 8;  // threads of a block: kTile x kTileRows

struct PushCall {
  void* queue;
  const void* keys;
  unsigned long long* ptr;
  void* label_queue;  // null without labels
  const void* labels;
  int64_t K, N, D;                                                                 // K and N below 2^31: start + N fits in 32 bits
  int64_t queue_row, queue_entry, key_row, key_entry, label_queue_row, label_row;  // strides in elements
  int label_bytes;
  bool truncate;
  int64_t first;  // the first key that stays: of more than K keys the last K do
};

// The tiles of keys and of entries; a launch has a block for each pair.
inline int64_t tiles_of_keys(const PushCall& call) { return (call.N - call.first + kTile - 1) / kTile; }
inline int64_t tiles_of_entries(const PushCall& call) { return (call.D + kTile - 1) / kTile; }

void launch_queue_push(const PushCall& call, int element_bytes, CUstream_st* stream);

}  // namespace fastssl
