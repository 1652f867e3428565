// One step of AdamW for all tensors in one parallel region.
// An element costs 28 bytes in float32 (read p, g, m, v, write p, m, v), 8 more for an average and 2 for a 16-bit shadow.
#include <cmath>

#include "cpu/optimizers.h"

namespace fastssl {

void adamw(const AdamCall& call) {
  const AdamRule shared{1.0,
                        1.0 - call.beta1,
                        1.0 - call.beta2,
                        call.beta2,
                        call.lr / (1.0 - std::pow(call.beta1, call.step)),
                        std::sqrt(1.0 - std::pow(call.beta2, call.step)),
                        call.eps,
                        average_of(call.ema_momentum)};
  const Updates& f = updates();
  for_each_chunk(call.params, [&](size_t t, int64_t offset, int64_t count) {
    AdamRule rule = shared;
    rule.kept = 1.0 - call.lr * call.weight_decay[t];
    const StepLists lists{array_of(call.params, t), array_of(call.grads, t),  array_of(call.first, t),     array_of(call.second, t),
                          array_of(call.ema, t),    array_of(call.shadow, t), array_of(call.ema_shadow, t)};
    f.adamw(lists, offset, count, rule);
  });
}

}  // namespace fastssl
