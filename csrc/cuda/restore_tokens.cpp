// fastssl::restore_tokens_fwd and restore_tokens_bwd on CUDA: one launch for the tokens, one for their gradient, and one or two for
// the gradient of the mask token.
#include "cuda/restore_tokens.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "cuda/gather_tokens.h"
#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

using torch::stable::new_empty;

Tensor restore_tokens_fwd(Tensor x, Tensor ids_restore, Tensor mask_token, std::optional<Tensor> pos, int64_t prefix) {
  const char* op = "restore_tokens_fwd";
  STD_TORCH_CHECK(x.dim() == 3 && prefix >= 0 && prefix <= x.size(1), op, ": bad x or prefix");
  expect_rows(op, x, {x.size(0), x.size(1), x.size(2)}, x);
  expect_ids(op, ids_restore, x.size(0), x);
  expect(op, mask_token, {x.size(2)}, mask_token.scalar_type(), x);
  if (pos) expect(op, *pos, {prefix + ids_restore.size(1), x.size(2)}, mask_token.scalar_type(), x);
  const DeviceOf on(x);
  RestoreCall call{};
  call.x = rows_of(x);
  call.ids_restore = static_cast<const int64_t*>(ids_restore.data_ptr());
  call.mask_token = mask_token.data_ptr(), call.pos = pos ? pos->data_ptr() : nullptr, call.dtype = dtype_of(mask_token);
  call.samples = x.size(0), call.prefix = prefix, call.kept = x.size(1) - prefix;
  call.length = ids_restore.size(1), call.width = x.size(2);
  Tensor out = new_empty(mask_token, {call.samples, prefix + call.length, call.width});
  call.out = out.data_ptr();
  launch_restore(call, on.stream);
  check(cudaGetLastError(), op);
  return out;
}

Tensor gradient_of_x(const Tensor& dout, const Tensor& ids_restore, int64_t kept, int64_t prefix, cudaStream_t stream) {
  ScatterCall call{};
  call.dout = rows_of(dout);
  call.ids = static_cast<const int64_t*>(ids_restore.data_ptr());
  call.samples = dout.size(0), call.prefix = prefix, call.count = ids_restore.size(1);
  call.length = kept, call.width = dout.size(2);
  Tensor dx = new_empty(dout, {call.samples, prefix + kept, call.width});
  call.out = dx.data_ptr();
  launch_scatter(call, stream);
  return dx;
}

Tensor gradient_of_token(const Tensor& dout, const Tensor& ids_restore, int64_t kept, int64_t prefix, cudaStream_t stream) {
  const ScalarType sums = accumulator(dout);
  SumCall call{};
  call.samples = dout.size(0), call.length = ids_restore.size(1), call.kept = kept, call.width = dout.size(2);
  call.rows = rows_of(dout);  // without the prefix: the rows of patches begin behind it
  call.rows.data = static_cast<const char*>(call.rows.data) + prefix * call.rows.row * bytes_of(call.rows.dtype);
  call.ids = static_cast<const int64_t*>(ids_restore.data_ptr()), call.chunks = chunks_of_rows(call.samples * call.length);
  STD_TORCH_CHECK(call.width < int64_t(1) << 21, "restore_tokens_bwd: tokens too wide for one launch, got ", call.width);
  Tensor dtoken = new_empty(dout, {call.width}, sums);
  Tensor partial = new_empty(dout, {call.chunks > 1 ? call.chunks : 0, call.width}, sums);
  call.out = dtoken.data_ptr();
  launch_sum(call, call.chunks > 1 ? partial.data_ptr() : nullptr, stream);
  return dtoken;
}

std::tuple<Tensor, Tensor> restore_tokens_bwd(Tensor dout, Tensor ids_restore, int64_t kept, int64_t prefix,
                                              std::vector<bool> need) {
  const char* op = "restore_tokens_bwd";
  STD_TORCH_CHECK(dout.dim() == 3 && kept >= 0 && prefix >= 0 && need.size() == 2, op, ": bad dout");
  expect_ids(op, ids_restore, dout.size(0), dout);
  expect_rows(op, dout, {dout.size(0), prefix + ids_restore.size(1), dout.size(2)}, dout);
  const DeviceOf on(dout);
  const ScalarType sums = accumulator(dout);
  Tensor dx = need[0] ? gradient_of_x(dout, ids_restore, kept, prefix, on.stream) : new_empty(dout, {0});
  Tensor dtoken = need[1] ? gradient_of_token(dout, ids_restore, kept, prefix, on.stream) : new_empty(dout, {0}, sums);
  check(cudaGetLastError(), op);
  return {dx, dtoken};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("restore_tokens_fwd", TORCH_BOX(&fastssl::restore_tokens_fwd));
  m.impl("restore_tokens_bwd", TORCH_BOX(&fastssl::restore_tokens_bwd));
}
