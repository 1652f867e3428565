// One step of AdamW for every tensor of a table in one launch, with one block for each chunk.
// An element costs 28 bytes in float32, 8 more for an average and 2 for a 16-bit shadow, so that memory is the limit.
// Predicted: 1.98 ms for a ViT-L on an H200, 2.55 ms with its average.
#include "cuda/adamw.h"
#include "cuda/steps.cuh"

namespace fastssl {

struct AdamScalars {
  double lr, size, root;
};

// The rates of the step, to all threads; one thread reads them from the device and computes the powers.
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

template <class T, int R>
__device__ inline void adamw_chunk(const TensorRecord& t, int32_t index, const AdamCall& call, const AdamScalars& s) {
  constexpr int writes[] = {kAdamParams, kAdamFirst, kAdamSecond, kAdamShadow, kAdamEma, kAdamEmaShadow};
  const AdamRates<T> rates = {
      T(1.0 - s.lr * t.weight_decay), T(1.0 - call.beta1), T(1.0 - call.beta2), T(call.beta2), T(s.size), T(s.root), T(call.eps)};
  const NewAverage<T> average(call.ema_momentum);
  for_each_element<T, R>(t, index, writes, [&](const T(&in)[R], T(&out)[6]) {
    T p = in[kAdamParams], m = in[kAdamFirst], v = in[kAdamSecond];
    adamw_element(p, in[kAdamGrads], m, v, rates);
    out[0] = p, out[1] = m, out[2] = v, out[3] = as_stored(p, t.dtype[kAdamParams]);
    out[4] = R > kAdamEma ? average(in[R - 1], out[3]) : T(0);
    out[5] = as_stored(out[4], t.dtype[kAdamEma]);
  });
}

// R = 5 with averages, 4 without.
template <int R>
__global__ void __launch_bounds__(kThreads, kStepsAtOnce) adamw_kernel(TableView table, AdamCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  const TensorRecord t = table.tensors[chunk.tensor];
  const AdamScalars scalars = scalars_of(call);
  if (t.dtype[kAdamParams] == kFloat64) adamw_chunk<double, R>(t, chunk.index, call, scalars);
  else adamw_chunk<float, R>(t, chunk.index, call, scalars);
}

void launch_adamw(const Launch& chunks, const AdamCall& call) {
  launch_over_chunks(call.averages ? adamw_kernel<5> : adamw_kernel<4>, chunks, call);
}

}  // namespace fastssl
