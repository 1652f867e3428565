// Element-wise updates of chunks of tensors, one function of each kind for every instruction set. 16-bit elements are widened in
// blocks of kBlock that stay in the first cache; float32 is read and written in place.
#pragma once
#include <cstdint>

#include "common/kinds.h"

namespace fastssl {

// An array of one kind; kNothing where it is not given.
struct Array {
  void* data;
  Kind kind;
};

enum class Average { kLerpNearFirst, kLerpNearSecond, kMulAdd };

struct EmaRule {
  Average form;
  double kept, weight;  // m and 1 - m
  bool stochastic;
  uint64_t seed;
};

struct Updates {
  // e <- average of e and p, shadow <- e: `count` elements from position `offset` (a multiple of 8) of tensor `stream`
  void (*ema)(Array e, Array p, Array shadow, int64_t offset, int64_t count, uint32_t stream, const EmaRule& rule);
};

const Updates& updates();  // of the instruction set in use

}  // namespace fastssl
