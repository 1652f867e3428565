// The table of the kernels' library (cpu/interface.h), and tensors on their way through it. at::Tensor is what torch's handles
// point to in the torch that this module was built for.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/interface.h"

namespace fastssl {

// Takes the table at this address, as a number, and registers the ops over lists; std::runtime_error if it is that of another
// version.
void attach(uintptr_t address);

const Interface& kernels();

inline AtenTensorHandle lent(const at::Tensor& tensor) {
  return reinterpret_cast<AtenTensorHandle>(const_cast<at::Tensor*>(&tensor));
}

// The tensor of a handle that the caller owns and gives up.
at::Tensor taken(AtenTensorHandle handle);

}  // namespace fastssl
