// The input of MAE's decoder (kept tokens in their places, the mask token elsewhere, positions added) and the mask token's
// gradient.
//   out_{n,P+l} = (r < K ? x_{n,P+r} : mask_token) + pos_{P+l},  r = ids_restore_{n,l};    out_{n,p} = x_{n,p} + pos_p,  p < P
// N (2 P + K + L) D elements are read and written. The gradient in x is that of a gather, see gather_tokens.cu.
//
// dmask_token is the sum of the rows of dout with r >= K, in two launches: one adds the rows of each chunk, the other adds the
// chunks. A column belongs to one lane of each warp of a block; the warps take the rows in turn and are added in order, so that
// every run gives the same bits.
#include "cuda/restore_tokens.h"
#include "cuda/rows.cuh"

namespace fastssl {

template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks - 1) restore_kernel(RestoreCall call) {
  const int64_t tokens = call.prefix + call.length;
  for_each_row(call.samples * tokens, [&](int64_t row) {
    const int64_t n = row / tokens, place = row % tokens;
    const Dtype dtype = known_dtype<G>(call.dtype);
    int64_t from = place;
    if (place >= call.prefix) from = call.ids_restore[n * call.length + place - call.prefix];
    const bool hidden = place >= call.prefix && uint64_t(from) >= uint64_t(call.kept);
    if (place >= call.prefix) from += call.prefix;
    const Row token = hidden ? Row{call.mask_token, dtype} : Row{row_of(call.x, n, from), call.x.dtype};
    const Row pos = {call.pos ? element(call.pos, dtype, place * call.width) : nullptr, dtype};
    write_sum<G>(element(call.out, dtype, row * call.width), dtype, token, pos, call.width);
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
        load<W>(row_of(call.rows, row / call.length, row % call.length), known_dtype<G>(call.rows.dtype), column, x[u]);
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
  const Dtype dtype = known_dtype<G>(call.rows.dtype);
  const int bytes = bytes_of(dtype);
  const bool aligned = fits<G>(call.rows.data, dtype) && call.width % G == 0 && call.rows.sample * bytes % 16 == 0 &&
                       call.rows.row * bytes % 16 == 0;
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

void launch_restore(const RestoreCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix + call.length));
  with_group(call.dtype, [&](auto g) { launch(restore_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_chunks(const SumCall& call, CUstream_st* stream) {
  with_group(call.rows.dtype, [&](auto g) {
    constexpr int G = decltype(g)::value;
    const dim3 grid{unsigned(call.chunks), unsigned((call.width + kWarp * G - 1) / (kWarp * G))};
    launch(sum_kernel<G>, grid, {kRowThreads}, stream, call);
  });
}

void launch_sum(const SumCall& call, void* partial, CUstream_st* stream) {
  SumCall first = call, second = call;
  if (partial) first.out = partial;
  launch_chunks(first, stream);
  if (!partial) return;
  second.rows = {partial, call.rows.dtype == kFloat64 ? kFloat64 : kFloat32, 0, call.width};
  second.ids = nullptr, second.samples = 1, second.length = call.chunks, second.chunks = 1;
  launch_chunks(second, stream);
}

}  // namespace fastssl
