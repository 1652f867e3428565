// The ops over lists of tensors by torch's C++ interface, which lends the tensors of a list where its stable one makes them anew.
#include "python/list_ops.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>

#include "cpu/list_ops.h"
#include "python/kernels.h"

namespace fastssl {
namespace {

struct FullTorch {
  using List = at::TensorList;
  using OptionalTensor = std::optional<at::Tensor>;
  using Numbers = at::ArrayRef<double>;
  using Integers = at::IntArrayRef;
  static double as_double(const at::Tensor& tensor) { return tensor.item<double>(); }
  static int64_t as_int64(const at::Tensor& tensor) { return tensor.item<int64_t>(); }
  static const Interface& kernels() { return fastssl::kernels(); }
};
using Ops = ListOps<FullTorch>;

}  // namespace

void register_list_ops() {
  static torch::Library* library = nullptr;  // never gone, since ops may be called until the process ends
  if (library) return;
  library = new torch::Library(MAKE_TORCH_LIBRARY_IMPL(fastssl, CPU));
  library->impl("ema_update_", &Ops::ema_update_);
  library->impl("adamw_", &Ops::adamw_);
  library->impl("lars_", &Ops::lars_);
}

}  // namespace fastssl
