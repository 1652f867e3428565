// Pushes keys onto a ring in place: queue[(ptr + i) mod K] <- keys_i, then the labels and the pointer.
// N D elements are read and written. In layout (D, K) a key is a column: blocks are transposed in registers, and both sides are
// touched in whole cache lines.
#include <algorithm>

#include "cpu/tensor.h"
#include "cpu/transpose.h"

namespace fastssl::queue {
namespace {

// `count` keys from `first` on go to `count` places of the queue from `place` on (rows of (K, D), columns of (D, K)).
struct Run {
  int64_t first, place, count;
};

// So many keys give a row of the queue their entries before the next row is touched: whole runs of cache lines of a page.
constexpr int64_t kTile = 256;

// Copies keys into columns whose rows, and keys whose entries, are neighbours in memory.
template <class T>
void copy_columns(const T* from, int64_t key, T* to, int64_t entry, int64_t count, int64_t width) {
  constexpr int64_t W = Line<T>::W;
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t end = std::min(count, first + kTile);
    for (int64_t d = 0; d < width; d += W) {
      const bool whole = d + W <= width;
      int64_t k = first;
      for (; whole && k + W <= end; k += W) transpose(from + k * key + d, key * int64_t(sizeof(T)), to + d * entry + k, entry);
      for (int64_t e = d; e < std::min(width, d + W); e++)
        for (int64_t rest = k; rest < end; rest++) to[e * entry + rest] = from[rest * key + e];
    }
  }
}

// Copies keys with any strides on both sides, in whole rows where the entries are neighbours in memory.
template <class T>
void copy_keys(const Tensor& queue, const Tensor& keys, const Run& run, bool columns) {
  const int64_t D = keys.size(1), key = keys.stride(0), key_entry = keys.stride(1);
  const int64_t row = queue.stride(columns ? 1 : 0), entry = queue.stride(columns ? 0 : 1);
  const T* from = static_cast<const T*>(keys.const_data_ptr()) + run.first * key;
  T* to = static_cast<T*>(queue.data_ptr()) + run.place * row;
  if (key_entry == 1 && entry == 1 && key == D && row == D) std::copy_n(from, run.count * D, to);
  else if (key_entry == 1 && entry == 1)
    for (int64_t k = 0; k < run.count; k++) std::copy_n(from + k * key, D, to + k * row);
  else if (key_entry == 1 && row == 1) copy_columns(from, key, to, entry, run.count, D);
  else
    for (int64_t d = 0; d < D; d++)
      for (int64_t k = 0; k < run.count; k++) to[k * row + d * entry] = from[k * key + d * key_entry];
}

// Calls f with a number of so many bytes: what is only copied may be of any type.
template <class F>
void of_size(int64_t bytes, const F& f) {
  if (bytes == 8) return f(uint64_t());
  if (bytes == 4) return f(uint32_t());
  return bytes == 2 ? f(uint16_t()) : f(uint8_t());
}

template <class T>
void copy_labels(const Tensor& label_queue, const Tensor& labels, const Run& run) {
  const T* from = static_cast<const T*>(labels.const_data_ptr()) + run.first * labels.stride(0);
  T* to = static_cast<T*>(label_queue.data_ptr()) + run.place * label_queue.stride(0);
  for (int64_t i = 0; i < run.count; i++) to[i * label_queue.stride(0)] = from[i * labels.stride(0)];
}

void queue_push_(const Tensor& queue, const Tensor& ptr, const Tensor& keys, const OptionalTensor& label_queue,
                 const OptionalTensor& labels, bool columns, bool truncate) {
  const int64_t K = queue.size(columns ? 1 : 0), N = keys.size(0);
  int64_t& pointer = *ptr.mutable_data_ptr<int64_t>();
  FASTSSL_CHECK_VALUE(pointer >= 0 && pointer < K, "queue_push_: ptr must be in [0, ", K, "), got ", pointer);
  const int64_t first = truncate ? 0 : std::max<int64_t>(0, N - K);
  const int64_t place = (pointer + first) % K;
  const int64_t before_end = std::min(N - first, K - place);
  const Run runs[2] = {{first, place, before_end}, {first + before_end, 0, truncate ? 0 : N - first - before_end}};
  for (const Run& run : runs) {
    if (run.count == 0) continue;
    of_size(queue.element_size(), [&]<class T>(T) {
      if constexpr (sizeof(T) > 1) copy_keys<T>(queue, keys, run, columns);
    });
    if (labels) of_size(labels->element_size(), [&]<class T>(T) { copy_labels<T>(*label_queue, *labels, run); });
  }
  pointer = truncate && pointer + N >= K ? 0 : (pointer + N) % K;
}

}  // namespace
}  // namespace fastssl::queue

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("queue_push_", TORCH_BOX(&fastssl::queue::queue_push_)); }
