// fastssl::queue_push_ on CUDA: one launch of queue_kernel.cuh, the pointer stays on the device.
#include "cuda/queue_kernel.cuh"

#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/tables.h"

namespace fastssl {
namespace {

void queue_push_(Tensor queue, Tensor ptr, Tensor keys, std::optional<Tensor> label_queue, std::optional<Tensor> labels,
                 bool columns, bool truncate) {
  const int32_t device = queue.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int row = columns ? 1 : 0;
  PushCall call{};
  call.queue = queue.data_ptr(), call.keys = keys.data_ptr();
  call.ptr = static_cast<unsigned long long*>(ptr.data_ptr());
  call.K = queue.size(row), call.N = keys.size(0), call.D = keys.size(1);
  call.queue_row = queue.stride(row), call.queue_entry = queue.stride(1 - row);
  call.key_row = keys.stride(0), call.key_entry = keys.stride(1);
  call.truncate = truncate;
  if (labels) {
    call.label_queue = label_queue->data_ptr(), call.labels = labels->data_ptr();
    call.label_queue_row = label_queue->stride(0), call.label_row = labels->stride(0);
    call.label_bytes = int(labels->element_size());
  }
  const int64_t tiles = (call.N - call.first() + kTile - 1) / kTile, wide = (call.D + kTile - 1) / kTile;
  STD_TORCH_CHECK(wide < (1 << 16), "queue_push_: width of the keys is too large for one launch, got ", call.D);
  const dim3 grid{unsigned(tiles), unsigned(wide)}, block{kTile, kTileRows};
  const cudaStream_t stream = stream_of(device);
  switch (queue.element_size()) {
    case 2:
      queue_push_kernel<uint16_t><<<grid, block, 0, stream>>>(call);
      break;
    case 4:
      queue_push_kernel<uint32_t><<<grid, block, 0, stream>>>(call);
      break;
    default:
      queue_push_kernel<uint64_t><<<grid, block, 0, stream>>>(call);
  }
  check(cudaGetLastError(), "queue_push_");
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("queue_push_", TORCH_BOX(&fastssl::queue_push_)); }
