// The updates of lists of tensors with numbers and arrays for arguments. Lists that are not empty have one length.
#pragma once
#include <cstdint>
#include <span>

#include "cpu/array.h"

namespace fastssl {

struct EmaCall {
  Arrays ema, params, shadow;
  double momentum;
  bool mul_add, stochastic;
  int64_t seed;
};

struct AdamCall {
  Arrays params, grads, first, second, ema, shadow, ema_shadow;
  double step, lr, beta1, beta2, eps;
  std::span<const double> weight_decay;  // of each tensor
  double ema_momentum;
};

struct LarsCall {
  Arrays params, grads, momenta, ema, shadow, ema_shadow;
  double lr, momentum;
  std::span<const double> weight_decay;  // of each tensor
  double trust_coefficient, eps;
  int form;
  std::span<const int64_t> adapt;  // whether each tensor is
  bool nesterov, clip;
  double ema_momentum;
};

void ema_update(const EmaCall& call);
void adamw(const AdamCall& call);
void lars(const LarsCall& call);

}  // namespace fastssl
