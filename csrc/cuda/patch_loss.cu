// MAE's loss over the removed patches; the targets are made from the images on the way.
//   loss = sum_r w_r mean_i d(pred_{r,i} - t_{r,i}) / sum_r w_r,   d(e) = e^2 or |e|,   t normalised patch by patch where asked for
//   dpred_{r,i} = g w_r d'(e) / (P sum w)
// Two tensors of N L P elements are read where w is not 0, and the backward writes a third. Predicted at the copy bandwidth of an
// H200: 160 us and 230 us for 1024 images of 3 x 224 x 224 in float32, pred in bfloat16, a quarter visible.
//
// A warp takes a row. It brings the patch into shared memory along the image's lines, in the order of the entries of pred, and then
// reads it there for the mean, the variance and the error. It reads four, two or one pixels at once, as width, strides and address
// allow; float64 pixels are read one by one. Patches of more than 8192 entries are read from the image each time.
//
// Sums are formed in a fixed order: lanes, rows of a warp, warps of a block, and blocks by a second launch; the last three in
// float64. For rows of weight 0 nothing of pred and images is read. Ids out of range count as weight 0.
#include "cuda/patch_loss.h"
#include "cuda/patches.cuh"

namespace fastssl {

// Writes V elements of shared memory at once; `to` is aligned to that.
template <int V, class T>
__device__ inline void write_group(T* to, const T (&x)[V]) {
  Packed<T, V> group;
#pragma unroll
  for (int k = 0; k < V; k++) group.value[k] = x[k];
  *reinterpret_cast<Packed<T, V>*>(to) = group;
}

// Blocks on a multiprocessor.
template <int G>
constexpr int kLossBlocks = G == 2 ? 4 : 5;
template <int G>
constexpr int kLossGradBlocks = G == 2 ? 3 : 4;
constexpr int kFinishThreads = 1024;

// The sample of a row of pred, the place among the sample's rows, the patch and the weight.
template <class T>
struct Weighted {
  int64_t n, place, l;
  T weight;
};
template <class T>
__device__ inline Weighted<T> weighted(const PatchLossCall& call, int64_t row) {
  const int64_t n = row / call.rows, place = row - n * call.rows;
  if (!call.ids) return {n, place, place, T(call.mask[row])};
  const int64_t id = call.ids[row];
  return {n, place, id, T(uint64_t(id) < uint64_t(call.grid.length) ? 1 : 0)};
}

// A lane stages its pixels in this many channels at once: the reads are all under way before the first is used.
constexpr uint32_t kChannelsAhead = 3;

// V neighbouring pixels in channels `first` and up to kChannelsAhead - 1 after it, from x[channel][pixel] to their places in the
// order of pred. RGB for (p, q, c) is written in whole groups too: single entries of lanes 4 pixels apart would share 8 banks.
template <int V, class T>
__device__ inline void stage_pixels(const PatchLossCall& call, T* staged, uint32_t first, uint32_t pixel,
                                    const T (&x)[kChannelsAhead][V]) {
  const uint32_t channels = uint32_t(call.grid.channels);
  if (!call.channels_last || channels == 1) {
#pragma unroll
    for (uint32_t c = 0; c < kChannelsAhead; c++)
      if (first + c < channels) write_group(staged + (first + c) * call.grid.by_plane.value + pixel, x[c]);
  } else if (V > 1 && channels == kChannelsAhead) {
#pragma unroll
    for (int part = 0; part < int(kChannelsAhead); part++) {
      T group[V];
#pragma unroll
      for (int k = 0; k < V; k++) group[k] = x[(part * V + k) % kChannelsAhead][(part * V + k) / kChannelsAhead];
      write_group(staged + pixel * kChannelsAhead + part * V, group);
    }
  } else {
#pragma unroll
    for (uint32_t c = 0; c < kChannelsAhead; c++)
#pragma unroll
      for (int k = 0; k < V; k++)
        if (first + c < channels) staged[(pixel + k) * channels + first + c] = x[c][k];
  }
}

// A patch of an image whose elements are E, V pixels an access.
template <int V, class E, class T>
__device__ inline void stage(const PatchLossCall& call, const E* patch, T* staged) {
  const PatchGrid& grid = call.grid;
  const uint32_t plane = grid.by_plane.value, channels = uint32_t(grid.channels);
  const uint32_t end = (channels + kChannelsAhead - 1) / kChannelsAhead * plane;
#pragma unroll 1
  for (uint32_t i = lane() * V; i < end; i += kWarp * V) {
    const uint32_t first = quotient(i, grid.by_plane) * kChannelsAhead, pixel = i - quotient(i, grid.by_plane) * plane;
    const uint32_t y = quotient(pixel, grid.by_width);
    const E* at = patch + (first * grid.channel + y * grid.line + (pixel - y * grid.by_width.value));
    Packed<E, V> raw[kChannelsAhead] = {};
#pragma unroll
    for (uint32_t c = 0; c < kChannelsAhead; c++)
      if (first + c < channels) raw[c] = *reinterpret_cast<const Packed<E, V>*>(at + c * grid.channel);
    T x[kChannelsAhead][V];
#pragma unroll
    for (uint32_t c = 0; c < kChannelsAhead; c++)
#pragma unroll
      for (int k = 0; k < V; k++) x[c][k] = value_of<T>(raw[c].value[k], call.image_dtype);
    stage_pixels<V>(call, staged, first, pixel, x);
  }
}
template <int V, class T>
__device__ inline void stage(const PatchLossCall& call, const void* patch, T* staged) {
  if (call.image_dtype == kFloat64) stage<1>(call, static_cast<const double*>(patch), staged);
  else if (call.image_dtype == kFloat32) stage<V>(call, static_cast<const float*>(patch), staged);
  else stage<V>(call, static_cast<const uint16_t*>(patch), staged);
}

// The target of a row before normalisation, entries in the order of pred.
template <class T>
struct Target {
  const PatchLossCall& call;
  const void* patch;  // in the image
  T* staged;          // null: read from the image each time

  __device__ Target(const PatchLossCall& of, int64_t n, int64_t l, T* share)
      : call(of), patch(element(of.images, of.image_dtype, patch_begin(of.grid, n, l))), staged(of.staged ? share : nullptr) {
    if (!staged) return;
    __syncwarp();  // other lanes may still read the row before
    if (fits_in_groups<4>(patch, call.image_dtype, call.grid)) stage<4>(call, patch, staged);
    else if (fits_in_groups<2>(patch, call.image_dtype, call.grid)) stage<2>(call, patch, staged);
    else stage<1>(call, patch, staged);
    __syncwarp();
  }

  // i counts in the order (c, p, q).
  __device__ T in_image(uint32_t i) const {
    T x[1];
    load<1>(patch, call.image_dtype, InPatch{call.grid}(i), x);
    return x[0];
  }

  __device__ T operator[](uint32_t i) const {
    if (staged) return staged[i];
    const uint32_t pixel = quotient(i, call.grid.by_channels), c = i - pixel * call.grid.by_channels.value;
    return in_image(call.channels_last ? c * call.grid.by_plane.value + pixel : i);
  }

  // Groups are read from shared memory alone.
  template <int W>
  __device__ void read(uint32_t i, T (&x)[W]) const {
    if constexpr (W == 1) x[0] = (*this)[i];
    else load<W>(staged, sizeof(T) == 8 ? kFloat64 : kFloat32, i, x);
  }
};

template <class T>
struct Stats {
  T mean, scale;
};
template <class T>
__device__ inline Stats<T> stats_of(const Target<T>& target, uint32_t entries, double eps) {
  T sum = 0, squares = 0;
  walk_row<4>(entries, target.staged, [&](int64_t i, auto width) {
    T x[decltype(width)::value];
    target.read(uint32_t(i), x);
#pragma unroll
    for (const T t : x) sum += t;
  });
  const T mean = add_over_warp(sum) / T(entries);
  walk_row<4>(entries, target.staged, [&](int64_t i, auto width) {
    T x[decltype(width)::value];
    target.read(uint32_t(i), x);
#pragma unroll
    for (const T t : x) squares += (t - mean) * (t - mean);
  });
  const T variance = add_over_warp(squares) / T(entries - 1);
  return {mean, T(1) / T(sqrt(variance + T(eps)))};
}

// Where the share of this warp begins: at a multiple of 16 bytes.
template <class T>
__device__ inline T* share_of(T* staged, int warps) {
  return staged + warp() * (kStagedBytes / int(sizeof(T)) / warps);
}

// Calls to(loss, weight) once, with sums over the warps of a block; all lanes of a warp hold the same values.
template <class To>
__device__ inline void add_over_warps(double loss, double weight, const To& to) {
  __shared__ double part[kWarp][2];
  if (lane() == 0) part[warp()][0] = loss, part[warp()][1] = weight;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < int(blockDim.x) / kWarp; w++) loss += part[w][0], weight += part[w][1];
  to(loss, weight);
}

template <int G>
__global__ void __launch_bounds__(kRowThreads, kLossBlocks<G>) patch_loss_kernel(PatchLossCall call) {
  using T = Real<G>;
  alignas(16) __shared__ T staged[kStagedBytes / sizeof(T)];
  const uint32_t entries = uint32_t(call.grid.entries);
  const Dtype dtype = known_dtype<G>(call.pred.dtype);
  double loss = 0, total = 0;
  for_each_row(call.samples * call.rows, [&](int64_t row) {
    const Weighted<T> at = weighted<T>(call, row);
    Stats<T> stats = {0, 0};
    if (at.weight != T(0)) {
      const Target<T> target(call, at.n, at.l, share_of(staged, call.warps));
      stats = call.normalize ? stats_of(target, entries, call.eps) : Stats<T>{0, 1};
      const void* pred = row_of(call.pred, at.n, at.place);
      T sum = 0;
      walk_row<G>(entries, call.staged && fits<G>(pred, dtype), [&](int64_t i, auto width) {
        constexpr int W = decltype(width)::value;
        T x[W], t[W];
        load<W>(pred, dtype, i, x);
        target.read(uint32_t(i), t);
#pragma unroll
        for (int k = 0; k < W; k++) {
          const T e = x[k] - (t[k] - stats.mean) * stats.scale;
          sum += call.absolute ? (e < T(0) ? -e : e) : e * e;
        }
      });
      loss += double(at.weight) * double(add_over_warp(sum) / T(entries));
      total += double(at.weight);
    }
    if (call.normalize && lane() < 2) static_cast<T*>(call.stats)[2 * row + lane()] = lane() == 0 ? stats.mean : stats.scale;
  });
  add_over_warps(loss, total, [&](double block_loss, double block_total) {
    call.partial[2 * blockIdx.x] = block_loss, call.partial[2 * blockIdx.x + 1] = block_total;
  });
}

// One block.
template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish_loss_kernel(PatchLossCall call) {
  double loss = 0, total = 0;
  for (int64_t b = threadIdx.x; b < call.blocks; b += kFinishThreads) {
    loss += call.partial[2 * b];
    total += call.partial[2 * b + 1];
  }
  loss = add_over_warp(loss), total = add_over_warp(total);
  add_over_warps(loss, total, [&](double sum, double weights) {
    *static_cast<T*>(call.loss) = weights > 0 ? T(sum / weights) : T(0);
    *static_cast<T*>(call.total) = T(weights);
  });
}

template <int G>
__global__ void __launch_bounds__(kRowThreads, kLossGradBlocks<G>) patch_loss_grad_kernel(PatchLossCall call) {
  using T = Real<G>;
  alignas(16) __shared__ T staged[kStagedBytes / sizeof(T)];
  const int64_t entries = call.grid.entries;
  const Dtype dtype = known_dtype<G>(call.pred.dtype);
  const T grad = *static_cast<const T*>(call.grad), total = *static_cast<const T*>(call.total);
  for_each_row(call.samples * call.rows, [&](int64_t row) {
    const Weighted<T> at = weighted<T>(call, row);
    void* out = element(call.dpred, dtype, row * entries);
    const T size = at.weight == T(0) ? T(0) : grad * at.weight / (total * T(entries));
    if (size == T(0)) return copy_row<G>(out, InOrder{}, nullptr, entries);
    const Target<T> target(call, at.n, at.l, share_of(staged, call.warps));
    const T* stats = static_cast<const T*>(call.stats) + 2 * row;
    const T mean = call.normalize ? stats[0] : T(0), scale = call.normalize ? stats[1] : T(1);
    const void* pred = row_of(call.pred, at.n, at.place);
    walk_row<G>(entries, call.staged && fits<G>(pred, dtype) && fits<G>(out, dtype), [&](int64_t i, auto width) {
      constexpr int W = decltype(width)::value;
      T x[W], t[W];
      load<W>(pred, dtype, i, x);
      target.read(uint32_t(i), t);
#pragma unroll
      for (int k = 0; k < W; k++) {
        const T e = x[k] - (t[k] - mean) * scale;
        x[k] = size * (call.absolute ? T(e > T(0)) - T(e < T(0)) : T(2) * e);
      }
      store<W>(out, dtype, i, x);
    });
  });
}

void launch_patch_loss(const PatchLossCall& call, CUstream_st* stream) {
  const dim3 block{unsigned(call.warps * kWarp)};
  with_group(call.pred.dtype,
             [&](auto g) { launch(patch_loss_kernel<decltype(g)::value>, {unsigned(call.blocks)}, block, stream, call); });
  if (call.pred.dtype == kFloat64) launch(finish_loss_kernel<double>, {1}, {kFinishThreads}, stream, call);
  else launch(finish_loss_kernel<float>, {1}, {kFinishThreads}, stream, call);
}

void launch_patch_loss_grad(const PatchLossCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * call.rows, call.warps);
  if (blocks == 0) return;
  const dim3 block{unsigned(call.warps * kWarp)};
  with_group(call.pred.dtype, [&](auto g) { launch(patch_loss_grad_kernel<decltype(g)::value>, {blocks}, block, stream, call); });
}

}  // namespace fastssl
