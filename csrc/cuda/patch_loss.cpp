// fastssl::patch_loss_fwd and patch_loss_bwd on CUDA: two launches and one of patch_loss.cu; weights stay on the device.
#include "cuda/patch_loss.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "cuda/expect.h"
#include "cuda/tables.h"

namespace fastssl {
namespace {

using torch::stable::new_empty;
using OptionalTensor = std::optional<Tensor>;

// How the loss is computed: the last arguments of the ops' schemas.
struct How {
  int64_t height, width;
  bool channels_last, normalize;
  double eps;
  bool absolute;
};

PatchLossCall loss_call(const char* op, const Tensor& images, const Tensor& pred, const OptionalTensor& mask,
                        const OptionalTensor& ids, const How& how) {
  expect_images(op, images, how.height, how.width);
  STD_TORCH_CHECK(pred.dim() == 3 && images.is_cpu() == pred.is_cpu() && !mask == !!ids, op, ": bad pred, mask or ids");
  PatchLossCall call{};
  call.images = images.data_ptr(), call.image_dtype = dtype_of(images);
  call.grid = patch_grid(images.sizes().data(), images.strides().data(), how.height, how.width);
  STD_TORCH_CHECK(call.grid.entries < int64_t(1) << 31, op, ": patches must have fewer than 2^31 entries, got ", call.grid.entries);
  call.pred = rows_of(pred);
  call.mask = mask ? static_cast<const float*>(mask->data_ptr()) : nullptr;
  call.ids = ids ? static_cast<const int64_t*>(ids->data_ptr()) : nullptr;
  call.samples = pred.size(0), call.rows = pred.size(1);
  expect_rows(op, pred, {images.size(0), ids ? call.rows : call.grid.length, call.grid.entries}, images);
  if (mask) expect(op, *mask, {call.samples, call.rows}, ScalarType::Float, images);
  if (ids) expect(op, *ids, {call.samples, call.rows}, ScalarType::Long, images);
  call.channels_last = how.channels_last, call.normalize = how.normalize, call.absolute = how.absolute, call.eps = how.eps;
  set_staging(call);
  return call;
}

std::tuple<Tensor, Tensor, Tensor> patch_loss_fwd(Tensor images, Tensor pred, OptionalTensor mask, OptionalTensor ids,
                                                  int64_t height, int64_t width, bool channels_last, bool normalize, double eps,
                                                  bool absolute) {
  const DeviceOf on(pred);
  PatchLossCall call =
      loss_call("patch_loss_fwd", images, pred, mask, ids, {height, width, channels_last, normalize, eps, absolute});
  call.blocks = loss_blocks(call);
  const ScalarType sums = accumulator(pred);
  Tensor loss = new_empty(pred, {}, sums), total = new_empty(pred, {}, sums);
  Tensor stats = normalize ? new_empty(pred, {call.samples, call.rows, 2}, sums) : new_empty(pred, {0}, sums);
  Tensor partial = new_empty(pred, {call.blocks, 2}, ScalarType::Double);
  call.loss = loss.data_ptr(), call.total = total.data_ptr(), call.stats = stats.data_ptr();
  call.partial = static_cast<double*>(partial.data_ptr());
  launch_patch_loss(call, on.stream);
  check(cudaGetLastError(), "patch_loss_fwd");
  return {loss, total, stats};
}

Tensor patch_loss_bwd(Tensor grad, Tensor total, Tensor stats, Tensor images, Tensor pred, OptionalTensor mask, OptionalTensor ids,
                      int64_t height, int64_t width, bool channels_last, bool normalize, double eps, bool absolute) {
  const DeviceOf on(pred);
  PatchLossCall call =
      loss_call("patch_loss_bwd", images, pred, mask, ids, {height, width, channels_last, normalize, eps, absolute});
  const ScalarType sums = accumulator(pred);
  expect("patch_loss_bwd", grad, {}, sums, pred);
  expect("patch_loss_bwd", total, {}, sums, pred);
  if (normalize) expect("patch_loss_bwd", stats, {call.samples, call.rows, 2}, sums, pred);
  Tensor dpred = new_empty(pred, {call.samples, call.rows, call.grid.entries});
  call.grad = grad.data_ptr(), call.total = total.data_ptr(), call.stats = stats.data_ptr(), call.dpred = dpred.data_ptr();
  launch_patch_loss_grad(call, on.stream);
  check(cudaGetLastError(), "patch_loss_bwd");
  return dpred;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("patch_loss_fwd", TORCH_BOX(&fastssl::patch_loss_fwd));
  m.impl("patch_loss_bwd", TORCH_BOX(&fastssl::patch_loss_bwd));
}
