// Pushes keys onto a ring in place: queue[(ptr + i) mod K] <- keys_i, then the labels and the pointer.
// N D elements are read and written. In layout (D, K) a key is a column: blocks of kTile x kTile are transposed in the first-level
// cache, so that both sides are touched in whole cache lines.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/parallel.h"

namespace fastssl::queue {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kTile = 32;

// `count` keys from `first` on go to `count` places of the queue from `place` on (rows of (K, D), columns of (D, K)).
struct Run {
  int64_t first, place, count;
};

// Copies keys through a block that stays in the first-level cache: it is read along the keys and written along the queue's fast
// direction. The entries are the outer loop, so that in (D, K) only kTile pages of the queue are in use at a time.
template <class T>
void copy_rows(const Tensor& queue, const Tensor& keys, const Run& run, bool columns) {
  const int64_t D = keys.size(1), key_row = keys.stride(0), key_entry = keys.stride(1);
  const int64_t row = queue.stride(columns ? 1 : 0), entry = queue.stride(columns ? 0 : 1);
  const T* from = keys.const_data_ptr<T>() + run.first * key_row;
  T* to = queue.mutable_data_ptr<T>() + run.place * row;
  const int64_t tiles = (D + kTile - 1) / kTile;
  parallel_for(tiles, kTile * run.count / 4, [&](int64_t begin, int64_t end) {
    T block[kTile][kTile];  // [entry][key]
    for (int64_t d0 = begin * kTile; d0 < std::min(D, end * kTile); d0 += kTile)
      for (int64_t k0 = 0; k0 < run.count; k0 += kTile) {
        const int64_t wide = std::min(kTile, D - d0), high = std::min(kTile, run.count - k0);
        for (int64_t k = 0; k < high; k++)
          for (int64_t d = 0; d < wide; d++) block[d][k] = from[(k0 + k) * key_row + (d0 + d) * key_entry];
        for (int64_t d = 0; d < wide; d++)
          for (int64_t k = 0; k < high; k++) to[(k0 + k) * row + (d0 + d) * entry] = block[d][k];
      }
  });
}

// Copies whole rows, where those of keys and queue are contiguous.
template <class T>
void copy_whole_rows(const Tensor& queue, const Tensor& keys, const Run& run) {
  const int64_t D = keys.size(1);
  const T* from = keys.const_data_ptr<T>();
  T* to = queue.mutable_data_ptr<T>();
  for (int64_t i = 0; i < run.count; i++)
    std::copy_n(from + (run.first + i) * keys.stride(0), D, to + (run.place + i) * queue.stride(0));
}

template <class T>
void copy_labels(const Tensor& label_queue, const Tensor& labels, const Run& run) {
  const T* from = labels.const_data_ptr<T>() + run.first * labels.stride(0);
  T* to = label_queue.mutable_data_ptr<T>() + run.place * label_queue.stride(0);
  for (int64_t i = 0; i < run.count; i++) to[i * label_queue.stride(0)] = from[i * labels.stride(0)];
}

void queue_push_(const Tensor& queue, const Tensor& ptr, const Tensor& keys, const OptionalTensor& label_queue,
                 const OptionalTensor& labels, bool columns, bool truncate) {
  const int64_t K = queue.size(columns ? 1 : 0), N = keys.size(0);
  int64_t& pointer = *ptr.mutable_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(pointer >= 0 && pointer < K, "queue_push_: ptr must be in [0, ", K, "), got ", pointer);
  const int64_t first = truncate ? 0 : std::max<int64_t>(0, N - K);
  const int64_t place = (pointer + first) % K;
  const int64_t before_end = std::min(N - first, K - place);
  const Run runs[2] = {{first, place, before_end}, {first + before_end, 0, truncate ? 0 : N - first - before_end}};
  for (const Run& run : runs) {
    if (run.count == 0) continue;
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, queue.scalar_type(), "queue_push_", [&] {
      if (!columns && keys.stride(1) == 1 && queue.stride(1) == 1) copy_whole_rows<scalar_t>(queue, keys, run);
      else copy_rows<scalar_t>(queue, keys, run, columns);
    });
    if (labels)
      AT_DISPATCH_INTEGRAL_TYPES(labels->scalar_type(), "queue_push_", [&] { copy_labels<scalar_t>(*label_queue, *labels, run); });
  }
  pointer = truncate && pointer + N >= K ? 0 : (pointer + N) % K;
}

}  // namespace
}  // namespace fastssl::queue

TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("queue_push_", &fastssl::queue::queue_push_); }
