// fastssl::visible_patches_fwd, visible_patches_bwd and visible_positions on CUDA: one launch each of embed_visible.cu.
#include "cuda/embed_visible.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

using torch::stable::new_empty;

PatchGrid visible_grid(const char* op, const Tensor& images, int64_t height, int64_t width) {
  const PatchGrid grid = patch_grid(images.sizes().data(), images.strides().data(), height, width);
  STD_TORCH_CHECK(grid.entries < int64_t(1) << 31, op, ": patches must have fewer than 2^31 entries, got ", grid.entries);
  return grid;
}

Tensor visible_patches_fwd(Tensor images, Tensor ids, int64_t height, int64_t width, int64_t prefix, ScalarType dtype) {
  expect_images("visible_patches_fwd", images, height, width);
  expect_ids("visible_patches_fwd", ids, images.size(0), images);
  STD_TORCH_CHECK(prefix >= 0, "visible_patches_fwd: bad prefix");
  const DeviceOf on(images);
  VisibleCall call{};
  call.grid = visible_grid("visible_patches_fwd", images, height, width);
  call.samples = images.size(0), call.prefix = prefix, call.kept = ids.size(1);
  Tensor out = new_empty(images, {call.samples, prefix + call.kept, call.grid.entries}, dtype);
  call.images = images.data_ptr(), call.ids = static_cast<const int64_t*>(ids.data_ptr()), call.out = out.data_ptr();
  call.image_dtype = dtype_of(images), call.dtype = dtype_of(out);
  launch_visible_patches(call, on.stream);
  check(cudaGetLastError(), "visible_patches_fwd");
  return out;
}

Tensor visible_patches_bwd(Tensor dpatches, Tensor ids, std::vector<int64_t> shape, int64_t height, int64_t width, int64_t prefix) {
  const DeviceOf on(dpatches);
  VisibleGradCall call{};
  Tensor images = new_empty(dpatches, shape);
  expect_images("visible_patches_bwd", images, height, width);
  expect_ids("visible_patches_bwd", ids, images.size(0), dpatches);
  call.grid = visible_grid("visible_patches_bwd", images, height, width);
  STD_TORCH_CHECK(prefix >= 0, "visible_patches_bwd: bad prefix");
  expect_rows("visible_patches_bwd", dpatches, {ids.size(0), prefix + ids.size(1), call.grid.entries}, dpatches);
  call.dpatches = rows_of(dpatches);
  call.ids = static_cast<const int64_t*>(ids.data_ptr()), call.images = images.data_ptr();
  call.samples = images.size(0), call.prefix = prefix, call.kept = ids.size(1);
  launch_visible_patches_grad(call, on.stream);
  check(cudaGetLastError(), "visible_patches_bwd");
  return images;
}

Tensor visible_positions(Tensor ids, std::optional<Tensor> bias, std::optional<Tensor> pos, std::optional<Tensor> prefix,
                         int64_t width, ScalarType dtype) {
  const char* op = "visible_positions";
  STD_TORCH_CHECK((!prefix || prefix->dim() == 2) && (!pos || pos->dim() == 2), op, ": bad shapes");
  const int64_t before = prefix ? prefix->size(0) : 0;
  STD_TORCH_CHECK(ids.dim() == 2, op, ": bad ids");
  expect_ids(op, ids, ids.size(0), ids);
  if (bias) expect(op, *bias, {width}, dtype, ids);
  if (pos) expect(op, *pos, {std::max(before, pos->size(0)), width}, dtype, ids);
  if (prefix) expect(op, *prefix, {before, width}, dtype, ids);
  const DeviceOf on(ids);
  PositionsCall call{};
  call.samples = ids.size(0), call.kept = ids.size(1), call.width = width;
  call.prefix_rows = before, call.length = pos ? pos->size(0) - call.prefix_rows : 0;
  Tensor out = new_empty(ids, {call.samples, call.prefix_rows + call.kept, width}, dtype);
  call.ids = static_cast<const int64_t*>(ids.data_ptr()), call.out = out.data_ptr(), call.dtype = dtype_of(out);
  call.bias = bias ? bias->data_ptr() : nullptr, call.pos = pos ? pos->data_ptr() : nullptr;
  call.prefix = prefix ? prefix->data_ptr() : nullptr;
  launch_visible_positions(call, on.stream);
  check(cudaGetLastError(), op);
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("visible_patches_fwd", TORCH_BOX(&fastssl::visible_patches_fwd));
  m.impl("visible_patches_bwd", TORCH_BOX(&fastssl::visible_patches_bwd));
  m.impl("visible_positions", TORCH_BOX(&fastssl::visible_positions));
}
