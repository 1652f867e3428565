// Functions on the keys of one sample, compiled for every instruction set: reading them, and ordering a few of them without a sort
// by digits.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

// What `MaskRows::order` takes at most: an index of a key is then one byte.
constexpr int kFewKeys = 256;

struct MaskRows {
  // keys <- the ordered keys of n values of noise, from element i on; of float64 the second function
  void (*read)(Array noise, int64_t i, int64_t n, uint32_t* keys);
  void (*read_wide)(Array noise, int64_t i, int64_t n, uint64_t* keys);
  // keys <- the random words of one sample
  void (*draw)(uint64_t seed, uint32_t sample, int64_t n, uint32_t* keys);
  // order <- the indices of n <= kFewKeys keys in a stable order; false, and nothing of use, where a sort by digits is faster:
  // where many keys are nearly equal and, for some instruction sets, where there are many keys
  bool (*order)(const uint32_t* keys, int n, uint8_t* order);
  bool (*order_wide)(const uint64_t* keys, int n, uint8_t* order);
  // shuffle, restore and mask of one sample from its order
  void (*write)(const uint8_t* order, int n, int64_t keep, int64_t* shuffle, int64_t* restore, float* mask);
};

const MaskRows& mask_rows();  // of the instruction set in use

}  // namespace fastssl
