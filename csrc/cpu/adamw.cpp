// One step of AdamW for all tensors in one parallel region.
// An element costs 28 bytes in float32 (read p, g, m, v, write p, m, v), 8 more for an average and 2 for a 16-bit shadow.
#include <cmath>

#include "cpu/optimizers.h"

namespace fastssl::adamw {
namespace {

void adamw_(const Tensors& params, const Tensors& grads, const Tensors& exp_avg, const Tensors& exp_avg_sq, double step,
            const OptionalTensor& step_scalar, double lr, const OptionalTensor& lr_scalar, double beta1, double beta2, double eps,
            const std::vector<double>& weight_decay, const Tensors& ema, double ema_momentum,
            const OptionalTensor& ema_momentum_scalar, const Tensors& shadow, const Tensors& ema_shadow) {
  const double rate = value_of(lr, lr_scalar), t = value_of(step, step_scalar);
  const AdamRule shared{1.0,
                        1.0 - beta1,
                        1.0 - beta2,
                        beta2,
                        rate / (1.0 - std::pow(beta1, t)),
                        std::sqrt(1.0 - std::pow(beta2, t)),
                        eps,
                        average_of(ema_momentum, ema_momentum_scalar)};
  const Updates& f = updates();
  for_each_chunk(params, [&](size_t i, int64_t offset, int64_t count) {
    AdamRule rule = shared;
    rule.kept = 1.0 - rate * weight_decay[i];
    const StepLists lists{array_of(params, i), array_of(grads, i),  array_of(exp_avg, i),   array_of(exp_avg_sq, i),
                          array_of(ema, i),    array_of(shadow, i), array_of(ema_shadow, i)};
    f.adamw(lists, offset, count, rule);
  });
}

}  // namespace
}  // namespace fastssl::adamw

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("adamw_", TORCH_BOX(&fastssl::adamw::adamw_)); }
