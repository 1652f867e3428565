// fastssl::gather_tokens_fwd and gather_tokens_bwd on CUDA: one launch each of gather_tokens_kernel.cuh.
#include "cuda/gather_tokens.h"

#include <torch/csrc/stable/ops.h>

#include "cuda/tables.h"

namespace fastssl {
namespace {

Tensor gather_tokens_fwd(Tensor x, Tensor ids) {
  const DeviceOf on(x);
  GatherCall call{};
  call.x = {x.data_ptr(), kind_of(x), x.stride(0), x.stride(1)};
  call.samples = ids.size(0), call.count = ids.size(1), call.length = x.size(1), call.width = x.size(2);
  Tensor out = torch::stable::new_empty(x, {call.samples, call.count, call.width});
  call.ids = static_cast<const int64_t*>(ids.data_ptr()), call.out = out.data_ptr();
  launch_gather(call, on.stream);
  check(cudaGetLastError(), "gather_tokens_fwd");
  return out;
}

Tensor gather_tokens_bwd(Tensor dout, Tensor ids, int64_t length) {
  const DeviceOf on(dout);
  ScatterCall call{};
  call.dout = {dout.data_ptr(), kind_of(dout), dout.stride(0), dout.stride(1)};
  call.samples = ids.size(0), call.count = ids.size(1), call.length = length, call.width = dout.size(2);
  Tensor out = torch::stable::new_empty(dout, {call.samples, length, call.width});
  call.ids = static_cast<const int64_t*>(ids.data_ptr()), call.out = out.data_ptr();
  launch_scatter(call, on.stream);
  check(cudaGetLastError(), "gather_tokens_bwd");
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("gather_tokens_fwd", TORCH_BOX(&fastssl::gather_tokens_fwd));
  m.impl("gather_tokens_bwd", TORCH_BOX(&fastssl::gather_tokens_bwd));
}
