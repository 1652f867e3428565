// fastssl::gather_tokens_fwd and gather_tokens_bwd on CUDA: one launch each of gather_tokens.cu.
#include "cuda/gather_tokens.h"

#include <torch/csrc/stable/ops.h>

#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

Tensor gather_tokens_fwd(Tensor x, Tensor ids) {
  STD_TORCH_CHECK(x.dim() == 3, "gather_tokens_fwd: bad x");
  expect_rows("gather_tokens_fwd", x, {x.size(0), x.size(1), x.size(2)}, x);
  expect_ids("gather_tokens_fwd", ids, x.size(0), x);
  const DeviceOf on(x);
  GatherCall call{};
  call.x = rows_of(x);
  call.samples = ids.size(0), call.count = ids.size(1), call.length = x.size(1), call.width = x.size(2);
  Tensor out = torch::stable::new_empty(x, {call.samples, call.count, call.width});
  call.ids = static_cast<const int64_t*>(ids.data_ptr()), call.out = out.data_ptr();
  launch_gather(call, on.stream);
  check(cudaGetLastError(), "gather_tokens_fwd");
  return out;
}

Tensor gather_tokens_bwd(Tensor dout, Tensor ids, int64_t length) {
  STD_TORCH_CHECK(dout.dim() == 3 && length >= 0, "gather_tokens_bwd: bad dout");
  expect_ids("gather_tokens_bwd", ids, dout.size(0), dout);
  expect_rows("gather_tokens_bwd", dout, {ids.size(0), ids.size(1), dout.size(2)}, dout);
  const DeviceOf on(dout);
  ScatterCall call{};
  call.dout = rows_of(dout);
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
