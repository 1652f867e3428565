// fastssl::block_mask on CUDA: one launch of block_mask.cu.
#include "cuda/block_mask.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

Tensor block_mask(Tensor num_masked, Tensor seed, Tensor aspects, int64_t rows, int64_t height, int64_t width, int64_t min_block,
                  int64_t max_block, int64_t attempts, bool exact) {
  const int64_t words = height * ((width + 31) / 32);
  STD_TORCH_CHECK(words >= 1 && words <= kBlockMaskWords && rows < (int64_t(1) << 31), "block_mask: grid too large, got ", height,
                  " x ", width);
  STD_TORCH_CHECK(aspects.dim() == 1 && aspects.size(0) > 0, "block_mask: bad aspects");
  expect("block_mask", num_masked, {rows}, ScalarType::Long, seed);
  expect("block_mask", seed, {}, ScalarType::Long, seed);
  expect("block_mask", aspects, {aspects.size(0)}, ScalarType::Float, seed);
  const DeviceOf on(seed);
  Tensor mask = torch::stable::new_empty(seed, {rows, height, width}, torch::headeronly::ScalarType::Bool);
  BlockMaskCall call{};
  call.num_masked = static_cast<const int64_t*>(num_masked.data_ptr()), call.seed = static_cast<const int64_t*>(seed.data_ptr());
  call.aspects = static_cast<const float*>(aspects.data_ptr()), call.mask = static_cast<bool*>(mask.data_ptr());
  call.N = rows, call.T = int(aspects.numel()), call.H = int(height), call.W = int(width);
  call.min_block = int(min_block), call.max_block = int(max_block), call.attempts = int(attempts), call.exact = exact;
  call.words = int(words), call.samples = int(std::min<int64_t>(kBlockMaskSamples, kBlockMaskWords / words));
  launch_block_mask(call, on.stream);
  check(cudaGetLastError(), "block_mask");
  return mask;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) { m.impl("block_mask", TORCH_BOX(&fastssl::block_mask)); }
