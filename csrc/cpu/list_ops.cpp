// The ops over lists of tensors by torch's stable interface, which makes a tensor of each list anew: 0.14 us. They are registered
// where fastssl._C is not in use, which registers them otherwise (python/list_ops.cpp).
#include "cpu/list_ops.h"

#include "cpu/tensor.h"

namespace fastssl {
namespace {

struct StableTorch {
  using List = const Tensors&;
  using OptionalTensor = fastssl::OptionalTensor;
  using Numbers = const std::vector<double>&;
  using Integers = IntArrayRef;
  static double as_double(const Tensor& tensor) { return fastssl::as_double(tensor); }
  static int64_t as_int64(const Tensor& tensor) { return fastssl::as_int64(tensor); }
  static const Interface& kernels() { return *fastssl_interface(); }
};
using Ops = ListOps<StableTorch>;

}  // namespace
}  // namespace fastssl

extern "C" __attribute__((visibility("default"))) void fastssl_register_list_ops() {
  using Library = torch::stable::detail::StableLibrary;
  static Library* library = nullptr;  // never gone, since ops may be called until the process ends
  if (library) return;
  library = new Library(Library::Kind::IMPL, "fastssl", "CPU", __FILE__, __LINE__);
  library->impl("ema_update_", TORCH_BOX(&fastssl::Ops::ema_update_));
  library->impl("adamw_", TORCH_BOX(&fastssl::Ops::adamw_));
  library->impl("lars_", TORCH_BOX(&fastssl::Ops::lars_));
}
