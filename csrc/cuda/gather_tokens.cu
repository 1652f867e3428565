// Some tokens of each sample, out_{n,k} = x_{n, ids_{n,k}}, and the gradient dx_{n,l} = sum_{k : ids_{n,k} = l} dout_{n,k}.
// The forward moves 2 N K D elements, the backward N (K + L) D. Predicted at the copy bandwidth of an H200, 49 of 196 tokens of 768
// entries in bfloat16, N = 256: 9 us forward, 22 us backward.
#include "cuda/gather_tokens.h"
#include "cuda/rows.cuh"

namespace fastssl {

// An id out of range gives zeros.
template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) gather_kernel(GatherCall call) {
  for_each_row(call.samples * call.count, [&](int64_t row) {
    const int64_t id = call.ids[row];
    const bool inside = uint64_t(id) < uint64_t(call.length);
    const void* from = inside ? row_of(call.x, row / call.count, id) : nullptr;
    copy_row<G>(static_cast<Bits<G>*>(call.out) + row * call.width, InOrder{}, from, call.width);
  });
}

// A warp looks for its row among the ids of the sample. The other warps of its block read the same ids, so that they come from the
// first-level cache.
template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks - 1) scatter_kernel(ScatterCall call) {
  const int64_t tokens = call.prefix + call.length;
  for_each_row(call.samples * tokens, [&](int64_t row) {
    const int64_t n = row / tokens, l = row % tokens - call.prefix;
    void* out = static_cast<Bits<G>*>(call.out) + row * call.width;
    if (l < 0) return copy_row<G>(out, InOrder{}, row_of(call.dout, n, call.prefix + l), call.width);
    const RowsView patches = {row_of(call.dout, n, call.prefix), call.dout.dtype, 0, call.dout.row};
    write_found<G>(out, InOrder{}, patches, {call.ids + n * call.count, call.count, l}, call.width);
  });
}

void launch_gather(const GatherCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * call.count);
  if (blocks == 0) return;
  with_group(call.x.dtype, [&](auto g) { launch(gather_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_scatter(const ScatterCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix + call.length));
  if (blocks == 0) return;
  with_group(call.dout.dtype, [&](auto g) { launch(scatter_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

}  // namespace fastssl
