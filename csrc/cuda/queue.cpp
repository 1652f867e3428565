// fastssl::queue_push_ on CUDA: one launch of queue.cu, the pointer stays on the device.
#include "cuda/queue.h"

#include <torch/headeronly/util/Exception.h>

#include "cuda/tables.h"

namespace fastssl {
namespace {

void queue_push_(Tensor queue, Tensor ptr, Tensor keys, std::optional<Tensor> label_queue, std::optional<Tensor> labels,
                 bool columns, bool truncate) {
  const DeviceOf on(queue);
  const int row = columns ? 1 : 0;
  PushCall call{};
  call.queue = queue.data_ptr(), call.keys = keys.data_ptr();
  call.ptr = static_cast<unsigned long long*>(ptr.data_ptr());
  call.K = queue.size(row), call.N = keys.size(0), call.D = keys.size(1);
  call.queue_row = queue.stride(row), call.queue_entry = queue.stride(1 - row);
  call.key_row = keys.stride(0), call.key_entry = keys.stride(1);
  call.truncate = truncate, call.first = !truncate && call.N > call.K ? call.N - call.K : 0;
  if (labels) {
    call.label_queue = label_queue->data_ptr(), call.labels = labels->data_ptr();
    call.label_queue_row = label_queue->stride(0), call.label_row = labels->stride(0);
    call.label_bytes = int(labels->element_size());
  }
  STD_TORCH_CHECK(tiles_of_entries(call) < (1 << 16), "queue_push_: keys too wide for one launch, got ", call.D);
  launch_queue_push(call, int(queue.element_size()), on.stream);
  check(cudaGetLastError(), "queue_push_");
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("queue_push_", TORCH_BOX(&fastssl::queue_push_)); }
