// The CUDA kernels' own source as a library for ctypes: what runs between the launch and the memory is what nvcc compiles.
#include "shim.h"

#define FASTSSL_FMA 1
#include "cuda/ema.cu"
#include "cuda/queue.cu"

using namespace fastssl;

namespace {

// data[l][t], dtype[l][t]: list l, position t.
std::vector<TensorRecord> records_of(int lists, int tensors, void** data, const int* dtype, const int64_t* count) {
  std::vector<TensorRecord> records(tensors);
  for (int t = 0; t < tensors; t++) {
    records[t] = {};
    records[t].count = count[t];
    for (Dtype& each : records[t].dtype) each = kNothing;
    for (int l = 0; l < lists; l++) records[t].data[l] = data[l * tensors + t], records[t].dtype[l] = Dtype(dtype[l * tensors + t]);
  }
  return records;
}

}  // namespace

extern "C" {

void ema_update(int tensors, void** data, const int* dtype, const int64_t* count, double momentum, const double* momentum_on_device,
                int mul_add, int stochastic, int64_t seed) {
  const auto records = records_of(kEmaLists, tensors, data, dtype, count);
  const auto chunks = chunks_of(records);
  const EmaCall call{{momentum, momentum_on_device, true}, bool(mul_add), bool(stochastic), uint64_t(seed), nullptr};
  launch_ema({{records.data(), chunks.data()}, unsigned(chunks.size()), nullptr}, call);
}

// strides: queue row, queue entry, key row, key entry, label queue, label
void queue_push(int element_bytes, void* queue, void* keys, int64_t* ptr, void* label_queue, void* labels, int label_bytes,
                int64_t K, int64_t N, int64_t D, const int64_t* strides, int truncate) {
  PushCall call{};
  call.queue = queue, call.keys = keys, call.ptr = reinterpret_cast<unsigned long long*>(ptr);
  call.label_queue = label_queue, call.labels = labels, call.label_bytes = label_bytes;
  call.K = K, call.N = N, call.D = D, call.truncate = truncate;
  call.queue_row = strides[0], call.queue_entry = strides[1], call.key_row = strides[2], call.key_entry = strides[3];
  call.label_queue_row = strides[4], call.label_row = strides[5];
  call.first = !truncate && N > K ? N - K : 0;
  launch_queue_push(call, element_bytes, nullptr);
}
}
