// The CUDA source of the optimizers, as kernels.cpp has that of the other updates. It is compiled without contraction, which the
// kernels forbid by __fmul_rn.
#include "records.h"
#include "shim.h"

#define FASTSSL_FMA 1
#include "cuda/adamw.cu"
#include "cuda/lars.cu"

using namespace fastssl;

namespace {

// What a call of either op has.
struct Step {
  Lists lists;
  const double* weight_decay;
  double lr, ema_momentum;
  const double* lr_on_device;
  bool averages;

  std::vector<TensorRecord> records() const {
    auto all = lists.records();
    for (int t = 0; t < lists.tensors; t++) all[t].weight_decay = weight_decay[t];
    return all;
  }
};

}  // namespace

extern "C" {

void lars(const Step* step, const int* adapt, int form, double momentum, double trust_coefficient, double eps, int nesterov,
          int clip) {
  auto records = step->records();
  for (int t = 0; t < step->lists.tensors; t++) records[t].adapt = adapt[t] != 0;
  const auto chunks = chunks_of(records);
  std::vector<double> squares(2 * chunks.size());
  LarsCall call{};
  call.lr = {step->lr, step->lr_on_device, true}, call.ema_momentum = {step->ema_momentum, nullptr, true};
  call.momentum = momentum, call.trust_coefficient = trust_coefficient, call.eps = eps;
  call.form = form, call.nesterov = nesterov, call.clip = clip, call.averages = step->averages, call.squares = squares.data();
  launch_lars({{records.data(), chunks.data()}, unsigned(chunks.size()), nullptr}, call);
}

void adamw(const Step* step, double t, double beta1, double beta2, double eps) {
  AdamCall call{};
  call.lr = {step->lr, step->lr_on_device, true}, call.step = {t, nullptr, true};
  call.ema_momentum = {step->ema_momentum, nullptr, true};
  call.beta1 = beta1, call.beta2 = beta2, call.eps = eps, call.averages = step->averages;
  call.size = step->lr / (1.0 - std::pow(beta1, t)), call.root = std::sqrt(1.0 - std::pow(beta2, t));
  const auto records = step->records();
  const auto chunks = chunks_of(records);
  launch_adamw({{records.data(), chunks.data()}, unsigned(chunks.size()), nullptr}, call);
}
}
