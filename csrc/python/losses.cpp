// Losses of small batches took as long in Python, the dispatcher and the nodes of autograd as in their kernels. Here a loss is one
// call that checks, computes and records one node, whose backward is one call too.
#include "python/losses.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "python/kernels.h"
#include "python/plain.h"

namespace fastssl {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

void refuse_second_derivative(const std::string& op, bool asked = true) {
  TORCH_CHECK_NOT_IMPLEMENTED(!asked, op, ": second derivatives are not implemented");
}

// A gradient as a function of all that it depends on, whose derivative raises.
struct SecondDerivative : Function<SecondDerivative> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gradient, const Tensor& token, const Tensor& upstream,
                        const std::string& op) {
    ctx->saved_data["op"] = op;
    return gradient.alias();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    refuse_second_derivative(ctx->saved_data["op"].toStringRef());
    return {};
  }
};

// What a loss is computed with beside tensors; `op` is the name in error messages.
struct Call {
  std::string op;
  double scale;
  bool mean, normalize = true, both = false;  // both directions
  bool keep = false;                          // what a backward may use
  Tensor labels = {};
  std::vector<bool> wanted = {};  // which inputs need a gradient, in a backward
  at::ScalarType dtype = {};      // of the rows, in a backward
};

// What a step takes for granted of the tensors that it saved: element type, place and layout, and sizes. They are written in bytes
// of 7 bits, since compiled autograd reads the strings of a node as UTF-8.
std::string kinds_of(const variable_list& tensors) {
  std::string kinds;
  const auto add = [&](uint64_t number) {
    for (int shift = 0; shift < 64; shift += 7) kinds.push_back(char(number >> shift & 127));
  };
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined()) {
      add(0);
      continue;
    }
    add(1 + uint64_t(tensor.scalar_type()));
    add((tensor.key_set() - c10::autograd_dispatch_keyset_with_ADInplaceOrView).raw_repr());
    add(uint64_t(tensor.dim()));
    for (int64_t size : tensor.sizes()) add(uint64_t(size));
  }
  return kinds;
}

// A loss as a node. Step has kInputs, names for profiles, and two functions:
//   forward(inputs, call) -> the loss and what the backward needs;   backward(dloss, saved, call) -> the gradients of the inputs
// The node has a second output without elements, the token, which nobody else sees. It is saved, so that a second derivative comes
// here, where it is refused. The loss itself would do, but then nobody could change it in place. Hooks on saved tensors, which move
// or compress them, may give back anything, so the kinds are compared before any kernel reads.
template <class Step>
struct LossNode : Function<LossNode<Step>> {
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, const Call& call) {
    RECORD_FUNCTION(Step::kForward, std::vector<c10::IValue>());
    auto [loss, saved] = Step::forward(inputs, call);
    saved.push_back(at::empty({0}, loss.options()));
    const Tensor token = saved.back();
    ctx->set_materialize_grads(false);
    const int64_t flags = call.mean + 2 * call.normalize + 4 * call.both + 8 * int64_t(inputs[0].scalar_type());
    ctx->saved_data["call"] = std::make_tuple(call.op, call.scale, flags, kinds_of(saved));
    ctx->save_for_backward(std::move(saved));
    return {loss, token};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &token = saved.back(), &dloss = upstream[0];
    variable_list gradients(Step::kInputs + 1);  // one for the call, which has none
    const auto [op, scale, flags, kinds] = ctx->saved_data["call"].to<std::tuple<std::string, double, int64_t, std::string>>();
    refuse_second_derivative(op, upstream[1].defined());
    if (!dloss.defined()) return gradients;
    TORCH_CHECK(kinds_of(saved) == kinds, op,
                ": a hook on saved tensors gave back a tensor of another shape, dtype, device or layout than was saved");
    std::vector<bool> wanted;
    for (size_t i = 0; i < Step::kInputs; i++) wanted.push_back(ctx->needs_input_grad(i));
    // A batch of upstream gradients, or one that is lazily negated, has no memory that could be read as it is. The gradients are
    // then multiplied by it in the dtype of the loss; autograd rounds the products to 16 bits, where the factors may overflow.
    const bool readable = dloss.key_set() == token.key_set();
    const auto dtype = at::ScalarType(flags / 8);
    {
      const at::NoGradGuard first_derivative_only;
      RECORD_FUNCTION(Step::kBackward, std::vector<c10::IValue>());
      gradients = Step::backward(readable ? dloss : at::ones({}, token.options()), saved,
                                 {op, scale, bool(flags & 1), bool(flags & 2), bool(flags & 4), false, Tensor(), wanted,
                                  readable ? dtype : token.scalar_type()});
      gradients.emplace_back();
    }
    for (size_t i = 0; i < Step::kInputs; i++) {
      Tensor& gradient = gradients[i];
      if (!wanted[i]) gradient = Tensor();
      else if (!readable) gradient = at::add(at::mul(gradient, dloss), at::sum(token, gradient.scalar_type()));
      else if (at::GradMode::is_enabled()) gradient = SecondDerivative::apply(gradient, token, dloss, op);
    }
    return gradients;
  }
};

// The step as the kernels' library takes it.
Step step_of(const Call& call) {
  Step step{call.scale, call.mean, call.normalize, call.both, call.keep, {}, call.dtype};
  std::copy(call.wanted.begin(), call.wanted.end(), step.wanted);
  return step;
}

template <size_t N>
std::array<AtenTensorHandle, N> lent(at::TensorList tensors) {
  std::array<AtenTensorHandle, N> handles;
  for (size_t i = 0; i < N; i++) handles[i] = fastssl::lent(tensors[i]);
  return handles;
}

// Calls f(room for N handles), and takes the tensors that it left there.
template <size_t N, class F>
variable_list made_by(const F& f) {
  AtenTensorHandle handles[N];
  f(handles);
  variable_list tensors;
  for (AtenTensorHandle handle : handles) tensors.push_back(taken(handle));
  return tensors;
}

// The loss, which comes first, and what was left to the backward.
std::pair<Tensor, variable_list> loss_and_rest(variable_list made) {
  const Tensor loss = made[0];
  made.erase(made.begin());
  return {loss, made};
}

struct NTXent {
  static constexpr const char *kForward = "fastssl::nt_xent_fwd", *kBackward = "fastssl::nt_xent_bwd";
  static constexpr size_t kInputs = 2;

  static std::pair<Tensor, variable_list> forward(at::TensorList views, const Call& call) {
    return loss_and_rest(
        made_by<5>([&](AtenTensorHandle* made) { kernels().nt_xent_forward(lent<2>(views).data(), step_of(call), made); }));
  }
  static variable_list backward(const Tensor& dloss, const variable_list& saved, const Call& call) {
    return made_by<2>([&](AtenTensorHandle* made) {
      kernels().nt_xent_backward(fastssl::lent(dloss), lent<4>(saved).data(), step_of(call), made);
    });
  }
};

struct SupCon {
  static constexpr const char *kForward = "fastssl::sup_con_fwd", *kBackward = "fastssl::sup_con_bwd";
  static constexpr size_t kInputs = 1;

  static std::pair<Tensor, variable_list> forward(at::TensorList inputs, const Call& call) {
    return loss_and_rest(made_by<6>(
        [&](AtenTensorHandle* made) { kernels().sup_con_forward(lent<2>({inputs[0], call.labels}).data(), step_of(call), made); }));
  }
  static variable_list backward(const Tensor& dloss, const variable_list& saved, const Call& call) {
    TORCH_CHECK(kernels().each_sample_once(fastssl::lent(saved[3])), call.op,
                ": a hook on saved tensors gave back other places of the samples than were saved");
    return made_by<1>([&](AtenTensorHandle* made) {
      kernels().sup_con_backward(fastssl::lent(dloss), lent<5>(saved).data(), step_of(call), made);
    });
  }
};

// The inputs are a, b and the factor of the scale, where it is a tensor, as in CLIP with a learned scale.
template <bool kFactor>
struct Cross {
  static constexpr const char *kForward = "fastssl::cross_fwd", *kBackward = "fastssl::cross_bwd";
  static constexpr size_t kInputs = kFactor ? 3 : 2;

  static std::pair<Tensor, variable_list> forward(at::TensorList inputs, const Call& call) {
    const Tensor factor = kFactor ? inputs[2] : Tensor();
    auto [loss, saved] = loss_and_rest(made_by<7>([&](AtenTensorHandle* made) {
      kernels().cross_forward(lent<3>({inputs[0], inputs[1], factor}).data(), step_of(call), made);
    }));
    if (kFactor) saved.push_back(factor);
    return {loss, saved};
  }
  static variable_list backward(const Tensor& dloss, const variable_list& saved, const Call& call) {
    variable_list left(saved.begin(), saved.begin() + 6);
    left.push_back(kFactor ? saved[6] : Tensor());
    variable_list gradients = made_by<3>(
        [&](AtenTensorHandle* made) { kernels().cross_backward(fastssl::lent(dloss), lent<7>(left).data(), step_of(call), made); });
    gradients.resize(kInputs);
    return gradients;
  }
};

bool alike(const Tensor& a, const Tensor& b) { return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type(); }

bool a_backward_may_follow(at::TensorList inputs) {
  return at::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); });
}

template <class Step>
pybind11::object loss_of(at::TensorList inputs, const Call& call) {
  Tensor loss;
  {
    const pybind11::gil_scoped_release others_may_run;
    loss = LossNode<Step>::apply(inputs, call)[0];
  }
  return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(loss));
}

}  // namespace

pybind11::object nt_xent(const std::string& op, const pybind11::handle& z0, const pybind11::handle& z1,
                         const pybind11::handle& temperature, bool mean) {
  if (!nothing_listens()) return pybind11::none();
  const Tensor *a = plain_floats(z0, 2), *b = plain_floats(z1, 2);
  if (!a || !b || !alike(*a, *b)) return pybind11::none();
  const auto scale = inverse(temperature, *a);
  if (!scale) return pybind11::none();
  return loss_of<NTXent>({*a, *b}, {op, *scale, mean, true, false, a_backward_may_follow({*a, *b})});
}

pybind11::object sup_con(const std::string& op, const pybind11::handle& features, const pybind11::handle& labels,
                         const pybind11::handle& temperature, bool normalize, bool mean) {
  if (!nothing_listens()) return pybind11::none();
  const Tensor *x = plain_floats(features, 3), *of = labels.is_none() ? nullptr : plain_integers(labels, 1);
  if (!x || (!of && !labels.is_none()) || (of && of->size(0) != x->size(0))) return pybind11::none();
  const auto scale = inverse(temperature, *x);
  if (!scale) return pybind11::none();
  return loss_of<SupCon>({*x}, {op, *scale, mean, normalize, false, a_backward_may_follow({*x}), of ? *of : Tensor()});
}

pybind11::object info_nce(const std::string& op, const pybind11::handle& query, const pybind11::handle& key,
                          const pybind11::handle& temperature, bool normalize, bool symmetric, bool mean) {
  if (!nothing_listens()) return pybind11::none();
  const Tensor *a = plain_floats(query, 2), *b = plain_floats(key, 2);
  if (!a || !b || !alike(*a, *b)) return pybind11::none();
  const bool backward = a_backward_may_follow({*a, *b});
  if (backward && !symmetric && !(a->requires_grad() && b->requires_grad())) return pybind11::none();  // one pass is cheaper
  const auto scale = inverse(temperature, *a);
  if (!scale) return pybind11::none();
  return loss_of<Cross<false>>({*a, *b}, {op, *scale, mean, normalize, symmetric, backward});
}

pybind11::object clip(const std::string& op, const pybind11::handle& image, const pybind11::handle& text,
                      const pybind11::handle& logit_scale, bool normalize) {
  if (!nothing_listens()) return pybind11::none();
  const Tensor *a = plain_floats(image, 2), *b = plain_floats(text, 2), *factor = plain_floats(logit_scale, 0);
  if (!a || !b || !alike(*a, *b)) return pybind11::none();
  const auto number = finite(logit_scale, *a);
  if (!factor && !number) return pybind11::none();
  const bool backward = a_backward_may_follow(factor ? at::TensorList({*a, *b, *factor}) : at::TensorList({*a, *b}));
  if (!factor) return loss_of<Cross<false>>({*a, *b}, {op, *number, true, normalize, true, backward});
  const double value = factor->item<double>();
  if (!std::isfinite(a->scalar_type() == at::kDouble ? value : double(float(value)))) return pybind11::none();
  return loss_of<Cross<true>>({*a, *b, *factor}, {op, 1.0, true, normalize, true, backward});
}

}  // namespace fastssl
