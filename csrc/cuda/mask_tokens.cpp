// fastssl::mask_tokens on CUDA: one launch of mask_tokens.cu.
#include "cuda/mask_tokens.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

std::tuple<Tensor, Tensor> mask_tokens(Tensor ids, std::optional<Tensor> special, Tensor seed, int64_t mask_id, int64_t vocab_size,
                                       int64_t hide, int64_t swap, int64_t pick, int64_t ignore_index) {
  STD_TORCH_CHECK(ids.dim() == 2, "mask_tokens: bad ids");
  expect_ids("mask_tokens", ids, ids.size(0), ids);
  if (special) expect("mask_tokens", *special, {ids.size(0), ids.size(1)}, ScalarType::Bool, ids);
  expect("mask_tokens", seed, {}, ScalarType::Long, ids);
  const DeviceOf on(ids);
  const int64_t N = ids.size(0), L = ids.size(1);
  Tensor inputs = torch::stable::new_empty(ids, {N, L}), labels = torch::stable::new_empty(ids, {N, L});
  MaskTokensCall call{};
  call.ids = static_cast<const int64_t*>(ids.data_ptr());
  call.special = special ? static_cast<const bool*>(special->data_ptr()) : nullptr;
  call.seed = static_cast<const int64_t*>(seed.data_ptr());
  call.inputs = static_cast<int64_t*>(inputs.data_ptr()), call.labels = static_cast<int64_t*>(labels.data_ptr());
  call.N = N, call.L = L, call.mask_id = mask_id, call.vocab_size = vocab_size;
  call.hide = hide, call.swap = swap, call.pick = pick, call.ignore_index = ignore_index;
  launch_mask_tokens(call, on.stream);
  check(cudaGetLastError(), "mask_tokens");
  return {inputs, labels};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("mask_tokens", TORCH_BOX(&fastssl::mask_tokens)); }
