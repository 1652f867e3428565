// What the AdamW kernel is called with.
#pragma once
#include "cuda/launch.h"

namespace fastssl {

// The lists of the table. The weight decay is in its records.
enum AdamList { kAdamParams, kAdamGrads, kAdamFirst, kAdamSecond, kAdamEma, kAdamShadow, kAdamEmaShadow, kAdamLists };

struct AdamCall {
  Scalar lr, step, ema_momentum;
  double beta1, beta2, eps;
  double size, root;  // lr / (1 - beta1^t), sqrt(1 - beta2^t), unless lr or step are on the device
  bool averages;      // whether the list kAdamEma is given
};

void launch_adamw(const Launch& chunks, const AdamCall& call);

}  // namespace fastssl
