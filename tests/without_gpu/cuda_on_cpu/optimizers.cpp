// The optimizers' CUDA kernels, as kernels.cpp. Compiled without contraction, which nvcc leaves to __fmul_rn.
#include "shim.h"

#define FASTSSL_FMA 1
#include "cuda/adamw_kernel.cuh"
#include "cuda/lars_kernel.cuh"

using namespace fastssl;

namespace {

// What a call of either op has in common. data[l][t], kind[l][t]: list l, position t.
struct Step {
  int lists, tensors;
  void** data;
  const int* kind;
  const int64_t* count;
  const double* weight_decay;
  double lr, ema_momentum;
  const double* lr_on_device;
  bool averages;

  std::vector<TensorRecord> records() const {
    std::vector<TensorRecord> all(tensors);
    for (int t = 0; t < tensors; t++) {
      all[t] = {};
      for (Kind& each : all[t].kind) each = kNothing;
      all[t].count = count[t], all[t].weight_decay = weight_decay[t];
      for (int l = 0; l < lists; l++) all[t].data[l] = data[l * tensors + t], all[t].kind[l] = Kind(kind[l * tensors + t]);
    }
    return all;
  }
};

template <class Kernel>
void launch(const std::vector<TensorRecord>& records, const Kernel& kernel) {
  const auto chunks = chunks_of(records);
  shim::launch({unsigned(chunks.size())}, {kThreads}, [&] { kernel(TableView{records.data(), chunks.data()}); });
}

}  // namespace

extern "C" {

void lars(const Step* step, const int* adapt, int form, double momentum, double trust_coefficient, double eps, int nesterov,
          int clip) {
  auto records = step->records();
  for (int t = 0; t < step->tensors; t++) records[t].adapt = adapt[t] != 0;
  std::vector<double> squares(2 * chunks_of(records).size());
  LarsCall call{};
  call.lr = {step->lr, step->lr_on_device, true}, call.ema_momentum = {step->ema_momentum, nullptr, true};
  call.momentum = momentum, call.trust_coefficient = trust_coefficient, call.eps = eps;
  call.form = form, call.nesterov = nesterov, call.clip = clip, call.averages = step->averages, call.squares = squares.data();
  launch(records, [&](TableView table) { lars_norms_kernel(table, call); });
  launch(records, [&](TableView table) { step->averages ? lars_kernel<4>(table, call) : lars_kernel<3>(table, call); });
}

void adamw(const Step* step, double t, double beta1, double beta2, double eps) {
  AdamCall call{};
  call.lr = {step->lr, step->lr_on_device, true}, call.step = {t, nullptr, true};
  call.ema_momentum = {step->ema_momentum, nullptr, true};
  call.beta1 = beta1, call.beta2 = beta2, call.eps = eps, call.averages = step->averages;
  call.size = step->lr / (1.0 - std::pow(beta1, t)), call.root = std::sqrt(1.0 - std::pow(beta2, t));
  launch(step->records(), [&](TableView table) { step->averages ? adamw_kernel<5>(table, call) : adamw_kernel<4>(table, call); });
}
}
