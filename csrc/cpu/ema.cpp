// Exponential moving average of all tensors of a module in one parallel region.
//   lerp: e <- e + w (p - e), w = 1 - m;   mul_add: e <- round(m e) + w p;   then shadow <- e.
// An element costs 12 bytes in float32 (read e and p, write e), 2 more for a bfloat16 shadow, and 3 FLOP: memory is the limit.
#include "cpu/lists.h"

namespace fastssl::ema {
namespace {

void ema_update_(const Tensors& ema, const Tensors& params, const Tensors& shadow, double momentum,
                 const OptionalTensor& momentum_scalar, bool mul_add, bool stochastic, int64_t seed,
                 const OptionalTensor& seed_scalar) {
  const double kept = momentum_scalar ? as_double(*momentum_scalar) : momentum;
  const EmaRule rule{mul_add, kept, 1.0 - kept, stochastic, uint64_t(seed_scalar ? as_int64(*seed_scalar) : seed)};
  const Updates& f = updates();
  for_each_chunk(ema, [&](size_t t, int64_t offset, int64_t count) {
    f.ema(array_of(ema, t), array_of(params, t), array_of(shadow, t), offset, count, uint32_t(t), rule);
  });
}

}  // namespace
}  // namespace fastssl::ema

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("ema_update_", TORCH_BOX(&fastssl::ema::ema_update_)); }
