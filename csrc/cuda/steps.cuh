// What the kernels of the optimizers share: the functions for one element, and the average of the new parameters.
#pragma once
#include "cuda/access.cuh"

namespace fastssl {

#define FASTSSL_FN __device__ inline
#include "common/optimizers.h"
#include "common/trust_ratio.h"
#undef FASTSSL_FN

// Blocks on a multiprocessor: with three to five lists and kUnroll 2, 48 KB or more are under way.
constexpr int kStepsAtOnce = 2;

template <class T>
struct NewAverage {
  T weight;

  __device__ explicit NewAverage(const Scalar& momentum) : weight(T(1.0 - value_of(momentum))) {}
  __device__ T operator()(T e, T p) const {
    return weight < T(0.5) ? lerp_near_first(e, p, weight) : lerp_near_second(e, p, weight - T(1));
  }
};

__device__ inline double as_stored(double x, Dtype) { return x; }

}  // namespace fastssl
