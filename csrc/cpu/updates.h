// Element-wise updates of chunks of tensors, compiled for every instruction set. 16-bit elements are widened in blocks of kBlock
// that stay in the first-level cache; float32 is read and written in place.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

struct EmaRule {
  bool mul_add;
  double kept, weight;  // m and 1 - m
  bool stochastic;
  uint64_t seed;
};

// The tensors of an optimizer's step at one position of the lists; `first` is mu of LARS or m of AdamW, `second` is v.
struct StepLists {
  Array params, grads, first, second, ema, shadow, ema_shadow;
};

struct LarsRule {
  double weight_decay, ratio, momentum, rate;  // p <- p - rate mu
  bool nesterov;
  EmaRule ema;
};

struct AdamRule {
  double kept;                        // 1 - lr weight_decay
  double first, second, beta2, size;  // 1 - beta1, 1 - beta2, beta2, lr / (1 - beta1^t)
  double root, eps;                   // sqrt(1 - beta2^t)
  EmaRule ema;
};

struct Updates {
  // e <- average of e and p, shadow <- e: `count` elements from position `offset` (a multiple of 8) of tensor `stream`
  void (*ema)(Array e, Array p, Array shadow, int64_t offset, int64_t count, uint32_t stream, const EmaRule& rule);
  // squares = |p|^2, |g + weight_decay p|^2 of `count` elements from `offset`, in float64
  void (*lars_norms)(Array params, Array grads, int64_t offset, int64_t count, double weight_decay, double* squares);
  // one step of `count` elements from `offset`: params, first, and second where there is one, then their copies
  void (*lars)(const StepLists& lists, int64_t offset, int64_t count, const LarsRule& rule);
  void (*adamw)(const StepLists& lists, int64_t offset, int64_t count, const AdamRule& rule);
};

const Updates& updates();  // of the instruction set in use

}  // namespace fastssl
