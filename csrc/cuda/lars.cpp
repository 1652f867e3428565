// fastssl::lars_ on CUDA: the two kernels of lars.cu over the table of the lists.
#include "cuda/lars.h"

#include <torch/csrc/stable/ops.h>

#include "cuda/tables.h"

namespace fastssl {
namespace {

void lars_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momenta, double lr,
           std::optional<Tensor> lr_scalar, double momentum, std::vector<double> weight_decay, double trust_coefficient, double eps,
           int64_t form, std::vector<int64_t> adapt, bool nesterov, bool clip, std::vector<Tensor> ema, double ema_momentum,
           std::optional<Tensor> ema_momentum_scalar, std::vector<Tensor> shadow, std::vector<Tensor> ema_shadow) {
  const DeviceOf on(params.at(0));
  std::vector<TensorRecord> records = new_records(params);
  add_list(records, kLarsParams, params), add_list(records, kLarsGrads, grads), add_list(records, kLarsMomenta, momenta);
  add_list(records, kLarsEma, ema), add_list(records, kLarsShadow, shadow), add_list(records, kLarsEmaShadow, ema_shadow);
  for (size_t t = 0; t < records.size(); t++) {
    records[t].weight_decay = weight_decay[t];
    records[t].adapt = uint8_t(adapt[t] != 0);
  }
  const Table table(records, on);
  const Launch launch = table.launch();
  if (launch.chunks == 0) return;
  const Tensor squares = torch::stable::new_empty(params[0], {int64_t(launch.chunks), 2}, torch::headeronly::ScalarType::Double);
  LarsCall call{};
  call.lr = scalar_of(lr, lr_scalar), call.ema_momentum = scalar_of(ema_momentum, ema_momentum_scalar);
  call.momentum = momentum, call.trust_coefficient = trust_coefficient, call.eps = eps;
  call.form = int(form), call.nesterov = nesterov, call.clip = clip, call.averages = !ema.empty();
  call.squares = static_cast<double*>(squares.data_ptr());
  launch_lars(launch, call);
  check(cudaGetLastError(), "lars_");
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("lars_", TORCH_BOX(&fastssl::lars_)); }
