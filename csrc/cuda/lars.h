// What the LARS kernels are called with.
#pragma once
#include "cuda/launch.h"

namespace fastssl {

// The lists of the table. Weight decay and `adapt` are in its records.
enum LarsList { kLarsParams, kLarsGrads, kLarsMomenta, kLarsEma, kLarsShadow, kLarsEmaShadow, kLarsLists };

struct LarsCall {
  Scalar lr, ema_momentum;
  double momentum, trust_coefficient, eps;
  int form;  // 0 moco_v3, 1 larc, 2 paper
  bool nesterov, clip;
  bool averages;    // whether the list kLarsEma is given
  double* squares;  // (chunks, 2), written by the norms' kernel: |p|^2 and |d|^2
};

void launch_lars(const Launch& chunks, const LarsCall& call);

}  // namespace fastssl
