// fastssl::mask_ids on CUDA: one launch of mask_ids.cu, the seed stays on the device.
#include "cuda/mask_ids.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

std::tuple<Tensor, Tensor, Tensor> mask_ids(std::optional<Tensor> noise, std::optional<Tensor> seed, int64_t rows, int64_t length,
                                            int64_t keep) {
  using torch::stable::new_empty;
  STD_TORCH_CHECK(length <= kMostRanked, "mask_ids: at most ", kMostRanked, " ids of a sample, got ", length);
  const Tensor& like = noise ? *noise : *seed;
  STD_TORCH_CHECK(rows >= 0 && length > 0, "mask_ids: bad size");
  if (noise) expect("mask_ids", like, {rows, length}, like.scalar_type(), like);
  else STD_TORCH_CHECK(like.numel() == 1 && like.scalar_type() == ScalarType::Long, "mask_ids: bad seed");
  const DeviceOf on(like);
  Tensor shuffle = new_empty(like, {rows, length}, ScalarType::Long), restore = new_empty(like, {rows, length}, ScalarType::Long);
  Tensor mask = new_empty(like, {rows, length}, ScalarType::Float);
  MaskIdsCall call{};
  if (noise) call.noise = noise->data_ptr(), call.dtype = dtype_of(*noise);
  else call.seed = static_cast<const int64_t*>(seed->data_ptr());
  call.rows = rows, call.length = int(length), call.keep = int(keep);
  call.shuffle = static_cast<int64_t*>(shuffle.data_ptr()), call.restore = static_cast<int64_t*>(restore.data_ptr());
  call.mask = static_cast<float*>(mask.data_ptr());
  launch_mask_ids(call, on.stream);
  check(cudaGetLastError(), "mask_ids");
  return {shuffle, restore, mask};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("mask_ids", TORCH_BOX(&fastssl::mask_ids)); }
