// One step of AdamW for every tensor of a table in one launch; one block a chunk.
// 28 bytes an element in float32, 8 more for an average, 2 for a 16-bit shadow: bound by memory.
// Predicted: 1.98 ms for a ViT-L on an H200, 2.55 ms with its average.
#pragma once
#include "cuda/adamw.h"
#include "cuda/steps.cuh"

namespace fastssl {

struct AdamScalars {
  double lr, size, root;
};

// To all threads; one of them reads the device and takes the powers.
__device__ inline AdamScalars scalars_of(const AdamCall& call) {
  __shared__ AdamScalars shared;
  if (threadIdx.x == 0) {
    shared = {value_of(call.lr), call.size, call.root};
    if (call.lr.device || call.step.device) {
      const double t = value_of(call.step);
      shared.size = shared.lr / (1.0 - pow(call.beta1, t));
      shared.root = sqrt(1.0 - pow(call.beta2, t));
    }
  }
  __syncthreads();
  return shared;
}

template <class T>
__device__ inline AdamRates<T> rates_of(const TensorRecord& t, const AdamCall& call, const AdamScalars& s) {
  return {
      T(1.0 - s.lr * t.weight_decay), T(1.0 - call.beta1), T(1.0 - call.beta2), T(call.beta2), T(s.size), T(s.root), T(call.eps)};
}

template <int R, class T>
__device__ inline void adamw_one(const TensorRecord& t, const AdamRates<T>& rates, const NewAverage<T>& average, T p, T g, T m, T v,
                                 T e, T (&out)[6]) {
  adamw_element(p, g, m, v, rates);
  out[0] = p, out[1] = m, out[2] = v, out[3] = as_stored(p, t.kind[kAdamParams]);
  out[4] = R == 5 ? average(e, out[3]) : T(0);
  out[5] = as_stored(out[4], t.kind[kAdamEma]);
}

// R = 5 with averages, 4 without.
template <int R>
__global__ void __launch_bounds__(kThreads, kStepsAtOnce) adamw_kernel(TableView table, AdamCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  const TensorRecord t = table.tensors[chunk.tensor];
  constexpr int writes[] = {kAdamParams, kAdamFirst, kAdamSecond, kAdamShadow, kAdamEma, kAdamEmaShadow};
  const AdamScalars scalars = scalars_of(call);
  if (t.kind[kAdamParams] == kFloat64) {
    const AdamRates<double> rates = rates_of<double>(t, call, scalars);
    const NewAverage<double> average(call.ema_momentum);
    for_each_double<R>(t, chunk.index, writes, [&](const double (&in)[R], double (&out)[6]) {
      adamw_one<R>(t, rates, average, in[0], in[1], in[2], in[3], in[R - 1], out);
    });
    return;
  }
  const AdamRates<float> rates = rates_of<float>(t, call, scalars);
  const NewAverage<float> average(call.ema_momentum);
  for_each_four<R>(t, chunk.index, writes, [&](int64_t, const float (&in)[R][4], float (&out)[6][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      float one[6];
      adamw_one<R>(t, rates, average, in[0][k], in[1][k], in[2][k], in[3][k], in[R - 1][k], one);
#pragma unroll
      for (int w = 0; w < 6; w++) out[w][k] = one[w];
    }
  });
}

}  // namespace fastssl
