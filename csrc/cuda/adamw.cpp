// fastssl::adamw_ on CUDA: the kernel of adamw.cu over the table of the lists.
#include "cuda/adamw.h"

#include <cmath>

#include "cuda/tables.h"

namespace fastssl {
namespace {

void adamw_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avg, std::vector<Tensor> exp_avg_sq,
            double step, std::optional<Tensor> step_scalar, double lr, std::optional<Tensor> lr_scalar, double beta1, double beta2,
            double eps, std::vector<double> weight_decay, std::vector<Tensor> ema, double ema_momentum,
            std::optional<Tensor> ema_momentum_scalar, std::vector<Tensor> shadow, std::vector<Tensor> ema_shadow) {
  const DeviceOf on(params.at(0));
  std::vector<TensorRecord> records = new_records(params);
  add_list(records, kAdamParams, params), add_list(records, kAdamGrads, grads);
  add_list(records, kAdamFirst, exp_avg), add_list(records, kAdamSecond, exp_avg_sq);
  add_list(records, kAdamEma, ema), add_list(records, kAdamShadow, shadow), add_list(records, kAdamEmaShadow, ema_shadow);
  for (size_t t = 0; t < records.size(); t++) records[t].weight_decay = weight_decay[t];
  const Table table(records, on);
  if (table.launch().chunks == 0) return;
  AdamCall call{};
  call.lr = scalar_of(lr, lr_scalar), call.step = scalar_of(step, step_scalar);
  call.ema_momentum = scalar_of(ema_momentum, ema_momentum_scalar);
  call.beta1 = beta1, call.beta2 = beta2, call.eps = eps, call.averages = !ema.empty();
  call.size = lr / (1.0 - std::pow(beta1, step)), call.root = std::sqrt(1.0 - std::pow(beta2, step));
  launch_adamw(table.launch(), call);
  check(cudaGetLastError(), "adamw_");
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("adamw_", TORCH_BOX(&fastssl::adamw_)); }
