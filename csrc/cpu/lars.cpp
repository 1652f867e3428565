// One step of LARS for all tensors: one parallel region for the norms, one for the update. Squares are added in float64, within a
// chunk and then in the order of the chunks, so that any number of threads gives the same bits. An element costs 28 bytes in
// float32 (8 for the norms, 20 for the update), 8 more for an average and 2 for a 16-bit shadow.
#include <array>
#include <cmath>

#include "cpu/optimizers.h"

namespace fastssl {
namespace {

#define FASTSSL_FN inline
#include "common/trust_ratio.h"
#undef FASTSSL_FN

// |p|^2 and |d|^2 of every tensor that is adapted, zeros for the others.
std::vector<std::array<double, 2>> squares_of(const LarsCall& call) {
  const Arrays params = call.params;
  std::vector<int64_t> first_chunk(params.size() + 1, 0);
  for (size_t t = 0; t < params.size(); t++)
    first_chunk[t + 1] = first_chunk[t] + (call.adapt[t] ? (params[t].numel + kChunk - 1) / kChunk : 0);
  std::vector<std::array<double, 2>> of_chunk(first_chunk.back()), of_tensor(params.size(), {0.0, 0.0});
  const bool decayed = call.form == 0;
  const Updates& f = updates();
  for_each_chunk(params, [&](size_t t, int64_t offset, int64_t count) {
    if (call.adapt[t])
      f.lars_norms(array_of(params, t), array_of(call.grads, t), offset, count, decayed ? call.weight_decay[t] : 0.0,
                   of_chunk[first_chunk[t] + offset / kChunk].data());
  });
  for (size_t t = 0; t < params.size(); t++)
    for (int64_t c = first_chunk[t]; c < first_chunk[t + 1]; c++)
      for (int k = 0; k < 2; k++) of_tensor[t][k] += of_chunk[c][k];
  return of_tensor;
}

}  // namespace

void lars(const LarsCall& call) {
  const LarsOptions options{call.form, call.lr, call.trust_coefficient, call.eps, call.clip};
  const auto squares = squares_of(call);
  LarsRule shared{0.0, 1.0, call.momentum, call.form == 2 ? 1.0 : call.lr, call.nesterov, average_of(call.ema_momentum)};
  std::vector<LarsRule> rules(call.params.size(), shared);
  for (size_t t = 0; t < rules.size(); t++) {
    const LarsScale scale = lars_scale(call.adapt[t], squares[t][0], squares[t][1], call.weight_decay[t], options);
    rules[t].ratio = scale.ratio, rules[t].weight_decay = scale.weight_decay;
  }
  const Updates& f = updates();
  for_each_chunk(call.params, [&](size_t t, int64_t offset, int64_t count) {
    const StepLists lists{array_of(call.params, t), array_of(call.grads, t),  array_of(call.momenta, t),   {nullptr, kNothing},
                          array_of(call.ema, t),    array_of(call.shadow, t), array_of(call.ema_shadow, t)};
    f.lars(lists, offset, count, rules[t]);
  });
}

}  // namespace fastssl
