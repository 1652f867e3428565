// The CUDA source of EMA and of the queue as a library for ctypes: what runs between the launch and the memory is what nvcc
// compiles.
#include "records.h"
#include "shim.h"

#define FASTSSL_FMA 1
#include "cuda/ema.cu"
#include "cuda/queue.cu"

using namespace fastssl;

extern "C" {

void ema_update(int tensors, void** data, const int* dtype, const int64_t* count, double momentum, const double* momentum_on_device,
                int mul_add, int stochastic, int64_t seed) {
  const auto records = Lists{kEmaLists, tensors, data, dtype, count}.records();
  const auto chunks = chunks_of(records);
  const EmaCall call{{momentum, momentum_on_device, true}, bool(mul_add), bool(stochastic), uint64_t(seed), nullptr};
  launch_ema({{records.data(), chunks.data()}, unsigned(chunks.size()), nullptr}, call);
}

// The strides are those of queue row, queue entry, key row, key entry, label queue and label.
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
