// Exponential moving average of all tensors of a module in one parallel region.
//   lerp: e <- e + w (p - e), w = 1 - m;   mul_add: e <- round(m e) + w p;   then shadow <- e.
// An element costs 12 bytes in float32 (read e and p, write e), 2 more for a bfloat16 shadow, and 3 FLOP: memory is the limit.
#include "cpu/lists.h"

namespace fastssl {

void ema_update(const EmaCall& call) {
  const EmaRule rule{call.mul_add, call.momentum, 1.0 - call.momentum, call.stochastic, uint64_t(call.seed)};
  const Updates& f = updates();
  for_each_chunk(call.ema, [&](size_t t, int64_t offset, int64_t count) {
    f.ema(array_of(call.ema, t), array_of(call.params, t), array_of(call.shadow, t), offset, count, uint32_t(t), rule);
  });
}

}  // namespace fastssl
