// One step of LARS for every tensor of a table in two launches, the norms and the update, with one block for each chunk.
// Squares are added in float64, and threads and chunks in a fixed order, so that every run gives the same bits. Each block of the
// update adds up the chunks of its tensor again: it reads 16 bytes for each chunk from the second-level cache, and 160 KB besides.
// An element costs 28 bytes in float32 (8 + 20), 8 more for an average and 2 for a 16-bit shadow, so that memory is the limit.
// Predicted: 166 us for a ResNet-50 on an H200, 214 us with its average.
#include "cuda/lars.h"
#include "cuda/steps.cuh"

namespace fastssl {

// Sums over the threads of a block, returned to all of them.
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

// |p|^2 and |g + weight_decay p|^2 of this thread's elements.
template <class T>
__device__ inline void add_squares(const TensorRecord& t, int32_t index, T weight_decay, double (&sum)[2]) {
  constexpr int writes[] = {kMostLists - 1};  // a list that is kNothing
  for_each_element<T, 2>(t, index, writes, [&](const T(&in)[2], T(&)[1]) {
    const T p = in[kLarsParams], g = in[kLarsGrads];
    const double x = p, d = weight_decay != T(0) ? multiply_add(weight_decay, p, g) : g;
    sum[0] += x * x;
    sum[1] += d * d;
  });
}

__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) lars_norms_kernel(TableView table, LarsCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  TensorRecord t = table.tensors[chunk.tensor];
  if (!t.adapt) return;
  for (int l = kLarsMomenta; l < kMostLists; l++) t.dtype[l] = kNothing;
  const double weight_decay = call.form == 0 ? t.weight_decay : 0.0;
  double sum[2] = {0.0, 0.0};
  if (t.dtype[kLarsParams] == kFloat64) add_squares<double>(t, chunk.index, weight_decay, sum);
  else add_squares<float>(t, chunk.index, float(weight_decay), sum);
  add_over_block(sum);
  if (threadIdx.x == 0) call.squares[2 * blockIdx.x] = sum[0], call.squares[2 * blockIdx.x + 1] = sum[1];
}

// The scale of the tensor that this block's chunk belongs to, returned to all threads.
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

template <class T, int R>
__device__ inline void lars_chunk(const TensorRecord& t, int32_t index, const LarsCall& call, const LarsScale& s, double rate) {
  constexpr int writes[] = {kLarsParams, kLarsMomenta, kLarsShadow, kLarsEma, kLarsEmaShadow};
  const LarsRates<T> rates = {T(s.weight_decay), T(s.ratio), T(call.momentum), T(rate), call.nesterov};
  const NewAverage<T> average(call.ema_momentum);
  for_each_element<T, R>(t, index, writes, [&](const T(&in)[R], T(&out)[5]) {
    T p = in[kLarsParams], mu = in[kLarsMomenta];
    lars_element(p, in[kLarsGrads], mu, rates);
    out[0] = p, out[1] = mu, out[2] = as_stored(p, t.dtype[kLarsParams]);
    out[3] = R > kLarsEma ? average(in[R - 1], out[2]) : T(0);
    out[4] = as_stored(out[3], t.dtype[kLarsEma]);
  });
}

// R = 4 with averages, 3 without.
template <int R>
__global__ void __launch_bounds__(kThreads, kStepsAtOnce) lars_kernel(TableView table, LarsCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  const TensorRecord t = table.tensors[chunk.tensor];
  const double lr = value_of(call.lr), rate = call.form == 2 ? 1.0 : lr;
  const LarsScale scale = scale_of(t, chunk, call, lr);
  if (t.dtype[kLarsParams] == kFloat64) lars_chunk<double, R>(t, chunk.index, call, scale, rate);
  else lars_chunk<float, R>(t, chunk.index, call, scale, rate);
}

void launch_lars(const Launch& chunks, const LarsCall& call) {
  launch_over_chunks(lars_norms_kernel, chunks, call);
  launch_over_chunks(call.averages ? lars_kernel<4> : lars_kernel<3>, chunks, call);
}

}  // namespace fastssl
