// fastssl::ema_update_ on CUDA: the kernel of ema_kernel.cuh over the table of the lists.
#include "cuda/ema_kernel.cuh"
#include "cuda/scalars.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

void ema_update_(std::vector<Tensor> ema, std::vector<Tensor> params, std::vector<Tensor> shadow, double momentum,
                 std::optional<Tensor> momentum_scalar, bool mul_add, bool stochastic, int64_t seed,
                 std::optional<Tensor> seed_scalar) {
  const int32_t device = ema.at(0).get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  std::vector<TensorRecord> records = new_records(ema);
  add_list(records, kEma, ema), add_list(records, kParams, params), add_list(records, kShadow, shadow);
  const cudaStream_t stream = stream_of(device);
  const Table table(records, device, stream);
  if (table.chunks() == 0) return;
  const EmaCall call{scalar_of(momentum, momentum_scalar), mul_add, stochastic, uint64_t(seed),
                     seed_scalar ? static_cast<const int64_t*>(seed_scalar->data_ptr()) : nullptr};
  ema_kernel<<<table.chunks(), kThreads, 0, stream>>>(table.view(), call);
  check(cudaGetLastError(), "ema_update_");
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("ema_update_", TORCH_BOX(&fastssl::ema_update_)); }
