// What stands around the matrix product of MAE's patch embedding: visible patches as the rows of a matrix, the gradient of these
// rows, and the rows that the product is added to.
//   A_{n,P+k} = patch ids_{n,k} of image n in the order (c, p, q), A_{n,i} = 0 for i < P         (N, P + K, C p q)
//   O_{n,P+k} = bias + pos_{P + ids_{n,k}},   O_{n,i} = prefix_i + pos_i for i < P               (N, P + K, E)
// Each visible pixel is read and written once. Predicted at the copy bandwidth of an H200: 13 us for 256 images of 3 x 224 x 224 in
// float32 with a quarter visible, rows in bfloat16. Lines of 16 pixels are 64 bytes there, two whole sectors.
#include "cuda/embed_visible.h"
#include "cuda/patches.cuh"

namespace fastssl {

template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks - 1) visible_patches_kernel(VisibleCall call) {
  const int64_t tokens = call.prefix + call.kept;
  for_each_row(call.samples * tokens, [&](int64_t row) {
    const int64_t n = row / tokens, k = row % tokens - call.prefix, entries = call.grid.entries;
    const Dtype dtype = known_dtype<G>(call.dtype);
    void* out = element(call.out, dtype, row * entries);
    const int64_t id = k < 0 ? -1 : call.ids[n * call.kept + k];
    if (uint64_t(id) >= uint64_t(call.grid.length)) return copy_row<G>(out, InOrder{}, nullptr, entries);
    const InPatch place{call.grid};
    const void* patch = element(call.images, call.image_dtype, patch_begin(call.grid, n, id));
    const bool aligned = fits<G>(out, dtype) && fits_in_groups<G>(patch, call.image_dtype, call.grid);
    if (!aligned) {
      read_singles<Real<G>>(patch, call.image_dtype, place, uint32_t(entries), [&](uint32_t i, Real<G> one) {
        const Real<G> x[1] = {one};
        store<1>(out, dtype, i, x);
      });
      return;
    }
    // Aligned patches have whole groups in a line, so that no single entries are left.
    const auto read = [&](int64_t i) {
      Packed<Real<G>, G> x;
      load<G>(patch, call.image_dtype, place(i), x.value);
      return x;
    };
    read_ahead<G>(entries, read, [&](int64_t i, const auto& x) { store<G>(out, dtype, i, x.value); });
  });
}

// A warp takes a patch of an image, visible or not, so that each pixel is written once.
template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks - 1) visible_patches_grad_kernel(VisibleGradCall call) {
  for_each_row(call.samples * call.grid.length, [&](int64_t row) {
    const int64_t n = row / call.grid.length, l = row % call.grid.length;
    void* out = static_cast<Bits<G>*>(call.images) + patch_begin(call.grid, n, l);
    const RowsView rows = {row_of(call.dpatches, n, call.prefix), call.dpatches.dtype, 0, call.dpatches.row};
    write_found<G>(out, InPatch{call.grid}, rows, {call.ids + n * call.kept, call.kept, l}, call.grid.entries);
  });
}

template <int G>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) visible_positions_kernel(PositionsCall call) {
  const int64_t tokens = call.prefix_rows + call.kept;
  for_each_row(call.samples * tokens, [&](int64_t row) {
    const int64_t n = row / tokens, place = row % tokens, k = place - call.prefix_rows;
    const Dtype dtype = known_dtype<G>(call.dtype);
    const int64_t id = k < 0 ? place : call.ids[n * call.kept + k];
    const bool named = k < 0 || uint64_t(id) < uint64_t(call.length);
    const void* at = call.pos && named ? element(call.pos, dtype, (k < 0 ? id : call.prefix_rows + id) * call.width) : nullptr;
    const void* other = k < 0 ? element(call.prefix, dtype, place * call.width) : call.bias;
    write_sum<G>(element(call.out, dtype, row * call.width), dtype, {at, dtype}, {other, dtype}, call.width);
  });
}

void launch_visible_patches(const VisibleCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix + call.kept));
  if (blocks == 0) return;
  with_group(call.dtype,
             [&](auto g) { launch(visible_patches_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_visible_patches_grad(const VisibleGradCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * call.grid.length);
  with_group(call.dpatches.dtype,
             [&](auto g) { launch(visible_patches_grad_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_visible_positions(const PositionsCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix_rows + call.kept));
  if (blocks == 0) return;
  with_group(call.dtype,
             [&](auto g) { launch(visible_positions_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

}  // namespace fastssl
