// The ops over lists of tensors for either interface of torch. Torch gives the types of their arguments there (List,
// OptionalTensor, Numbers, Integers), the only element of a tensor (as_double, as_int64), and the kernels' functions (kernels).
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/interface.h"

namespace fastssl {

template <class Torch>
struct ListOps {
  using List = typename Torch::List;
  using Scalar = const typename Torch::OptionalTensor&;
  using Numbers = typename Torch::Numbers;
  using Integers = typename Torch::Integers;

  static std::vector<ListedArray> arrays(List tensors) {
    std::vector<ListedArray> made;
    made.reserve(tensors.size());
    for (const auto& tensor : tensors) made.push_back({{tensor.data_ptr(), dtype_of(tensor.scalar_type())}, tensor.numel()});
    return made;
  }

  // A number, which the op may be given as a tensor.
  static double value(double number, Scalar tensor) { return tensor ? Torch::as_double(*tensor) : number; }

  static void ema_update_(List ema, List params, List shadow, double momentum, Scalar momentum_scalar, bool mul_add,
                          bool stochastic, int64_t seed, Scalar seed_scalar) {
    Torch::kernels().ema_update({arrays(ema), arrays(params), arrays(shadow), value(momentum, momentum_scalar), mul_add, stochastic,
                                 seed_scalar ? Torch::as_int64(*seed_scalar) : seed});
  }

  static void adamw_(List params, List grads, List exp_avg, List exp_avg_sq, double step, Scalar step_scalar, double lr,
                     Scalar lr_scalar, double beta1, double beta2, double eps, Numbers weight_decay, List ema, double ema_momentum,
                     Scalar ema_momentum_scalar, List shadow, List ema_shadow) {
    Torch::kernels().adamw({arrays(params),
                            arrays(grads),
                            arrays(exp_avg),
                            arrays(exp_avg_sq),
                            arrays(ema),
                            arrays(shadow),
                            arrays(ema_shadow),
                            value(step, step_scalar),
                            value(lr, lr_scalar),
                            beta1,
                            beta2,
                            eps,
                            {weight_decay.data(), weight_decay.size()},
                            value(ema_momentum, ema_momentum_scalar)});
  }

  static void lars_(List params, List grads, List momenta, double lr, Scalar lr_scalar, double momentum, Numbers weight_decay,
                    double trust_coefficient, double eps, int64_t form, Integers adapt, bool nesterov, bool clip, List ema,
                    double ema_momentum, Scalar ema_momentum_scalar, List shadow, List ema_shadow) {
    Torch::kernels().lars({arrays(params),
                           arrays(grads),
                           arrays(momenta),
                           arrays(ema),
                           arrays(shadow),
                           arrays(ema_shadow),
                           value(lr, lr_scalar),
                           momentum,
                           {weight_decay.data(), weight_decay.size()},
                           trust_coefficient,
                           eps,
                           int(form),
                           {adapt.data(), adapt.size()},
                           nesterov,
                           clip,
                           value(ema_momentum, ema_momentum_scalar)});
  }
};

}  // namespace fastssl
