// One step of LARS for all tensors: one parallel region for the norms, one for the update. Squares are added in float64, within a
// chunk and then in the order of the chunks, so that any number of threads gives the same bits. An element costs 28 bytes in
// float32 (8 for the norms, 20 for the update), 8 more for an average and 2 for a 16-bit shadow.
#include <array>
#include <cmath>

#include "cpu/optimizers.h"

namespace fastssl::lars {
namespace {

#define FASTSSL_FN inline
#include "common/trust_ratio.h"
#undef FASTSSL_FN

// |p|^2 and |d|^2 of every tensor that is adapted, zeros for the others.
std::vector<std::array<double, 2>> squares_of(const Tensors& params, const Tensors& grads, const std::vector<double>& weight_decay,
                                              IntArrayRef adapt, bool decayed) {
  std::vector<int64_t> first_chunk(params.size() + 1, 0);
  for (size_t t = 0; t < params.size(); t++)
    first_chunk[t + 1] = first_chunk[t] + (adapt[t] ? (params[t].numel() + kChunk - 1) / kChunk : 0);
  std::vector<std::array<double, 2>> of_chunk(first_chunk.back()), of_tensor(params.size(), {0.0, 0.0});
  const Updates& f = updates();
  for_each_chunk(params, [&](size_t t, int64_t offset, int64_t count) {
    if (adapt[t])
      f.lars_norms(array_of(params, t), array_of(grads, t), offset, count, decayed ? weight_decay[t] : 0.0,
                   of_chunk[first_chunk[t] + offset / kChunk].data());
  });
  for (size_t t = 0; t < params.size(); t++)
    for (int64_t c = first_chunk[t]; c < first_chunk[t + 1]; c++)
      for (int k = 0; k < 2; k++) of_tensor[t][k] += of_chunk[c][k];
  return of_tensor;
}

void lars_(const Tensors& params, const Tensors& grads, const Tensors& momenta, double lr, const OptionalTensor& lr_scalar,
           double momentum, const std::vector<double>& weight_decay, double trust_coefficient, double eps, int64_t form,
           IntArrayRef adapt, bool nesterov, bool clip, const Tensors& ema, double ema_momentum,
           const OptionalTensor& ema_momentum_scalar, const Tensors& shadow, const Tensors& ema_shadow) {
  const LarsOptions options{int(form), value_of(lr, lr_scalar), trust_coefficient, eps, clip};
  const auto squares = squares_of(params, grads, weight_decay, adapt, form == 0);
  LarsRule shared{0.0, 1.0, momentum, form == 2 ? 1.0 : options.lr, nesterov, average_of(ema_momentum, ema_momentum_scalar)};
  std::vector<LarsRule> rules(params.size(), shared);
  for (size_t t = 0; t < params.size(); t++) {
    const LarsScale scale = lars_scale(adapt[t], squares[t][0], squares[t][1], weight_decay[t], options);
    rules[t].ratio = scale.ratio, rules[t].weight_decay = scale.weight_decay;
  }
  const Updates& f = updates();
  for_each_chunk(params, [&](size_t t, int64_t offset, int64_t count) {
    const StepLists lists{array_of(params, t), array_of(grads, t),  array_of(momenta, t),   {nullptr, kNothing},
                          array_of(ema, t),    array_of(shadow, t), array_of(ema_shadow, t)};
    f.lars(lists, offset, count, rules[t]);
  });
}

}  // namespace
}  // namespace fastssl::lars

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("lars_", TORCH_BOX(&fastssl::lars::lars_)); }
