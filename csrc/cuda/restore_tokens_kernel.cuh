// Input of MAE's decoder: kept tokens in their places, the mask token elsewhere, positions added; and the mask token's gradient.
//   out_{n,P+l} = (r < K ? x_{n,P+r} : mask_token) + pos_{P+l},  r = ids_restore_{n,l};    out_{n,p} = x_{n,p} + pos_p,  p < P
// N (2 P + K + L) D elements read and written. The gradient in x is that of a gather, cuda/gather_tokens_kernel.cuh.
//
// dmask_token = sum of the rows of dout with r >= K, in two launches: chunks of rows, then chunks. A column belongs to one lane of
// each of a block's warps, which take rows in turn and are added in order: the same bits at every run.
#pragma once
#include "cuda/restore_tokens.h"
#include "cuda/rows.cuh"

namespace fastssl {

template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks - 1) restore_kernel(RestoreCall call) {
  const int64_t tokens = call.prefix + call.length;
  for_each_row(call.samples * tokens, [&](int64_t row) {
    const int64_t n = row / tokens, place = row % tokens;
    const Kind kind = own<G>(call.kind);
    int64_t from = place;
    if (place >= call.prefix) from = call.ids_restore[n * call.length + place - call.prefix];
    const bool hidden = place >= call.prefix && uint64_t(from) >= uint64_t(call.kept);
    if (place >= call.prefix) from += call.prefix;
    const Row token = hidden ? Row{call.mask_token, kind} : Row{row_of(call.x, n, from), call.x.kind};
    const Row pos = {call.pos ? element(call.pos, kind, place * call.width) : nullptr, kind};
    write_sum<G>(element(call.out, kind, row * call.width), kind, token, pos, call.width);
  });
}

constexpr int kSumBlocks = 3;  // on a multiprocessor: 24 warps with 2 KB under way
constexpr int kRowsAhead = 4;  // rows of a warp that are read before the first is added

// Sums over this block's chunk of rows (blockIdx.x) in a tile of kWarp G columns (blockIdx.y), one for each warp. A lane takes W
// neighbouring columns at once, G / W times.
template <int G, int W>
__device__ inline void sum_tile(const SumCall& call, Real<G> (&part)[kRowWarps][kWarp * G]) {
  const int64_t rows = call.samples * call.length, size = (rows + call.chunks - 1) / call.chunks;
  const int64_t begin = blockIdx.x * size, end = begin + size < rows ? begin + size : rows;
#pragma unroll 1
  for (int t = 0; t < G / W; t++) {
    const int first = t * kWarp + lane() * W;
    const int64_t column = int64_t(blockIdx.y) * kWarp * G + first;
    Real<G> sum[W] = {};
    for (int64_t row0 = begin + warp(); row0 < end; row0 += kRowWarps * kRowsAhead) {
      Real<G> x[kRowsAhead][W] = {};
#pragma unroll
      for (int u = 0; u < kRowsAhead; u++) {
        const int64_t row = row0 + u * kRowWarps;
        if (row >= end || column >= call.width || (call.ids && uint64_t(call.ids[row]) < uint64_t(call.kept))) continue;
        load<W>(row_of(call.rows, row / call.length, row % call.length), own<G>(call.rows.kind), column, x[u]);
      }
#pragma unroll
      for (int u = 0; u < kRowsAhead; u++)
#pragma unroll
        for (int k = 0; k < W; k++) sum[k] += x[u][k];
    }
#pragma unroll
    for (int k = 0; k < W; k++) part[warp()][first + k] = sum[k];
  }
}

template <int G>
__global__ void __launch_bounds__(kRowThreads, kSumBlocks) sum_kernel(SumCall call) {
  __shared__ Real<G> part[kRowWarps][kWarp * G];
  const Kind kind = own<G>(call.rows.kind);
  const int bytes = size_of(kind);
  const bool aligned =
      fits<G>(call.rows.data, kind) && call.width % G == 0 && call.rows.sample * bytes % 16 == 0 && call.rows.row * bytes % 16 == 0;
  if (aligned) sum_tile<G, G>(call, part);
  else sum_tile<G, 1>(call, part);
  __syncthreads();
  Real<G>* out = static_cast<Real<G>*>(call.out) + blockIdx.x * call.width;
  for (int c = threadIdx.x; c < kWarp * G; c += kRowThreads) {
    const int64_t column = int64_t(blockIdx.y) * kWarp * G + c;
    if (column >= call.width) break;
    Real<G> sum = 0;
#pragma unroll
    for (int w = 0; w < kRowWarps; w++) sum += part[w][c];
    out[column] = sum;
  }
}

}  // namespace fastssl
