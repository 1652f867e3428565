// fastssl::ema_update_ on CUDA: the kernel of ema.cu over the table of the lists.
#include "cuda/ema.h"

#include "cuda/tables.h"

namespace fastssl {
namespace {

void ema_update_(std::vector<Tensor> ema, std::vector<Tensor> params, std::vector<Tensor> shadow, double momentum,
                 std::optional<Tensor> momentum_scalar, bool mul_add, bool stochastic, int64_t seed,
                 std::optional<Tensor> seed_scalar) {
  const DeviceOf on(ema.at(0));
  std::vector<TensorRecord> records = new_records(ema);
  add_list(records, kEma, ema), add_list(records, kParams, params), add_list(records, kShadow, shadow);
  const Table table(records, on);
  if (table.launch().chunks == 0) return;
  const int64_t* seed_on_device = seed_scalar ? static_cast<const int64_t*>(seed_scalar->data_ptr()) : nullptr;
  launch_ema(table.launch(), {scalar_of(momentum, momentum_scalar), mul_add, stochastic, uint64_t(seed), seed_on_device});
  check(cudaGetLastError(), "ema_update_");
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("ema_update_", TORCH_BOX(&fastssl::ema_update_)); }
