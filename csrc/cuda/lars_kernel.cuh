// One step of LARS for every tensor of a table in two launches, norms and update; one block a chunk.
// Squares are added in float64, threads and chunks in a fixed order: the same bits at every run. Each block of the update adds the
// chunks of its tensor anew: 16 bytes a chunk from the second-level cache against 160 KB that it reads and writes.
// 28 bytes an element in float32 (8 + 20), 8 more for an average, 2 for a 16-bit shadow: bound by memory.
// Predicted: 166 us for a ResNet-50 on an H200, 214 us with its average.
#pragma once
#include "cuda/lars.h"
#include "cuda/steps.cuh"

namespace fastssl {

// Sums over the threads of a block, to all of them.
__device__ inline void add_over_block(double (&sum)[2]) {
  __shared__ double part[2][kThreads];
  for (int k = 0; k < 2; k++) part[k][threadIdx.x] = sum[k];
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < width)
      for (int k = 0; k < 2; k++) part[k][threadIdx.x] += part[k][threadIdx.x + width];
  }
  __syncthreads();
  for (int k = 0; k < 2; k++) sum[k] = part[k][0];
}

template <class T>
__device__ inline void add_squares(double (&sum)[2], T p, T g, T weight_decay) {
  const double x = p, d = weight_decay != T(0) ? multiply_add(weight_decay, p, g) : g;
  sum[0] += x * x;
  sum[1] += d * d;
}

__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) lars_norms_kernel(TableView table, LarsCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  TensorRecord t = table.tensors[chunk.tensor];
  if (!t.adapt) return;
  for (int l = kLarsMomenta; l < kMostLists; l++) t.kind[l] = kNothing;
  constexpr int writes[] = {kMostLists - 1};  // nothing
  const double weight_decay = call.form == 0 ? t.weight_decay : 0.0;
  double sum[2] = {0.0, 0.0};
  if (t.kind[kLarsParams] == kFloat64) {
    for_each_double<2>(t, chunk.index, writes, [&](const double (&in)[2], double (&)[1]) {
      add_squares(sum, in[kLarsParams], in[kLarsGrads], weight_decay);
    });
  } else {
    for_each_four<2>(t, chunk.index, writes, [&](int64_t, const float (&in)[2][4], float (&)[1][4]) {
#pragma unroll
      for (int k = 0; k < 4; k++) add_squares(sum, in[kLarsParams][k], in[kLarsGrads][k], float(weight_decay));
    });
  }
  add_over_block(sum);
  if (threadIdx.x == 0) call.squares[2 * blockIdx.x] = sum[0], call.squares[2 * blockIdx.x + 1] = sum[1];
}

// The scale of the tensor that this block's chunk belongs to, to all threads.
__device__ inline LarsScale scale_of(const TensorRecord& t, const ChunkRecord& chunk, const LarsCall& call, double lr) {
  __shared__ LarsScale scale;
  double sum[2] = {0.0, 0.0};
  if (t.adapt) {
    const double* squares = call.squares + 2 * (int64_t(blockIdx.x) - chunk.index);
    const int chunks = int((t.count + kChunkElements - 1) / kChunkElements);
    for (int c = threadIdx.x; c < chunks; c += kThreads) sum[0] += squares[2 * c], sum[1] += squares[2 * c + 1];
    add_over_block(sum);
  }
  if (threadIdx.x == 0)
    scale = lars_scale(t.adapt, sum[0], sum[1], t.weight_decay, {call.form, lr, call.trust_coefficient, call.eps, call.clip});
  __syncthreads();
  return scale;
}

template <int R, class T>
__device__ inline void lars_one(const TensorRecord& t, const LarsRates<T>& rates, const NewAverage<T>& average, T p, T g, T mu, T e,
                                T (&out)[5]) {
  lars_element(p, g, mu, rates);
  out[0] = p, out[1] = mu, out[2] = as_stored(p, t.kind[kLarsParams]);
  out[3] = R == 4 ? average(e, out[2]) : T(0);
  out[4] = as_stored(out[3], t.kind[kLarsEma]);
}

// R = 4 with averages, 3 without.
template <int R>
__global__ void __launch_bounds__(kThreads, kStepsAtOnce) lars_kernel(TableView table, LarsCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  const TensorRecord t = table.tensors[chunk.tensor];
  constexpr int writes[] = {kLarsParams, kLarsMomenta, kLarsShadow, kLarsEma, kLarsEmaShadow};
  const double lr = value_of(call.lr), rate = call.form == 2 ? 1.0 : lr;
  const LarsScale s = scale_of(t, chunk, call, lr);
  if (t.kind[kLarsParams] == kFloat64) {
    const LarsRates<double> rates = {s.weight_decay, s.ratio, call.momentum, rate, call.nesterov};
    const NewAverage<double> average(call.ema_momentum);
    for_each_double<R>(t, chunk.index, writes, [&](const double (&in)[R], double (&out)[5]) {
      lars_one<R>(t, rates, average, in[0], in[1], in[2], in[R - 1], out);
    });
    return;
  }
  const LarsRates<float> rates = {float(s.weight_decay), float(s.ratio), float(call.momentum), float(rate), call.nesterov};
  const NewAverage<float> average(call.ema_momentum);
  for_each_four<R>(t, chunk.index, writes, [&](int64_t, const float (&in)[R][4], float (&out)[5][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      float one[5];
      lars_one<R>(t, rates, average, in[0][k], in[1][k], in[2][k], in[R - 1][k], one);
#pragma unroll
      for (int w = 0; w < 5; w++) out[w][k] = one[w];
    }
  });
}

}  // namespace fastssl
