// What the EMA kernel is called with.
#pragma once
#include "cuda/launch.h"

namespace fastssl {

// The lists of the table.
enum EmaList { kEma, kParams, kShadow, kEmaLists };

struct EmaCall {
  Scalar momentum;
  bool mul_add, stochastic;
  uint64_t seed;
  const int64_t* seed_on_device;  // in place of `seed`, unless null
};

void launch_ema(const Launch& chunks, const EmaCall& call);

}  // namespace fastssl
