// MAE's loss over the removed patches, the target made from the image patch by patch in the first cache.
//   loss = sum m mean_i d(pred_i - t_i) / sum m,  t <- (t - mean) / sqrt(var + eps) where normalised,  d(e) = e^2 or |e|
//   dpred_i = g m d'(e) / (P sum m);  rows of weight 0 are not read, their gradient is 0
// With M = N L P elements and a share r of removed patches: 2 r M elements read forward, 2 r M read and M written backward.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/tokens.h"

namespace fastssl::patch_loss {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kRows = 64;  // whose errors are summed apart: the same sums for every number of threads

// A call in both directions: row i = n R + r of pred (N, R, P) belongs to patch l of image n with weight m.
struct Problem {
  Tensor images, pred, ids, mask;
  PatchShape shape;
  int64_t R, across;
  double eps;
  bool normalize, absolute;

  Problem(const Tensor& images_given, const Tensor& pred_given, const OptionalTensor& mask_given, const OptionalTensor& ids_given,
          int64_t height, int64_t width, bool channels_last, bool normalize, double eps, bool absolute)
      : images(images_given.stride(3) == 1 ? images_given : images_given.contiguous()),
        pred(pred_given.stride(2) == 1 ? pred_given : pred_given.contiguous()),
        shape{images.size(1), height, width, images.stride(1), images.stride(2), channels_last},
        R(pred.size(1)),
        across(images.size(3) / width),
        eps(eps),
        normalize(normalize),
        absolute(absolute) {
    if (ids_given) {
      ids = ids_given->contiguous();
      check_range("masked_patch_loss", ids, images.size(2) / height * across);
    }
    if (mask_given) mask = mask_given->contiguous();
  }
  int64_t rows() const { return pred.size(0) * R; }
  float weight(int64_t i) const { return mask.defined() ? mask.const_data_ptr<float>()[i] : 1.0f; }
  int64_t pred_row(int64_t i) const { return i / R * pred.stride(0) + i % R * pred.stride(1); }

  template <class T>
  void target(int64_t i, T* out) const {
    const int64_t l = ids.defined() ? ids.const_data_ptr<int64_t>()[i] : i % R;
    const int64_t down = l / across * shape.height, right = l % across * shape.width;
    token_rows<T>().patch(array_of(images), i / R * images.stride(0) + down * shape.row + right, shape, out);
  }
};

template <class T>
void forward(const Problem& p, T* stats, T* loss, T* total) {
  const TokenRows<T>& f = token_rows<T>();
  const int64_t rows = p.rows(), entries = p.shape.entries(), groups = (rows + kRows - 1) / kRows;
  std::vector<double> losses(groups, 0.0), weights(groups, 0.0);
  const Array pred = array_of(p.pred);
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> target(entries);
    for (int64_t group = begin; group < end; group++)
      for (int64_t i = group * kRows; i < std::min(rows, (group + 1) * kRows); i++) {
        const double weight = p.weight(i);
        Scaling<T> scaling{T(0), T(1)};
        if (weight != 0.0) {
          p.target(i, target.data());
          if (p.normalize) scaling = f.scaling(target.data(), entries, p.eps);
          losses[group] += weight * f.error(pred, p.pred_row(i), entries, target.data(), scaling, p.absolute) / double(entries);
          weights[group] += weight;
        }
        if (p.normalize) stats[2 * i] = scaling.mean, stats[2 * i + 1] = scaling.scale;
      }
  });
  double sum = 0.0, weight = 0.0;
  for (int64_t group = 0; group < groups; group++) sum += losses[group], weight += weights[group];
  *total = T(weight), *loss = weight > 0.0 ? T(sum / weight) : T(0);
}

template <class T>
void backward(const Problem& p, const T* stats, T grad, T total, const Tensor& dpred) {
  const TokenRows<T>& f = token_rows<T>();
  const int64_t entries = p.shape.entries();
  const Array pred = array_of(p.pred), out = array_of(dpred);
  const int64_t bytes = entries * bytes_of(pred.kind);
  at::parallel_for(0, p.rows(), rows_a_task(entries), [&](int64_t begin, int64_t end) {
    std::vector<T> target(entries);
    for (int64_t i = begin; i < end; i++) {
      const T size = total > T(0) ? grad * T(p.weight(i)) / (total * T(entries)) : T(0);
      if (size == T(0)) {
        std::fill_n(static_cast<char*>(out.data) + i * bytes, bytes, 0);
        continue;
      }
      p.target(i, target.data());
      const Scaling<T> scaling = p.normalize ? Scaling<T>{stats[2 * i], stats[2 * i + 1]} : Scaling<T>{T(0), T(1)};
      f.slope(pred, p.pred_row(i), entries, target.data(), scaling, p.absolute, p.absolute ? size : T(2) * size, out, i * entries);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> patch_loss_fwd(const Tensor& images, const Tensor& pred, const OptionalTensor& mask,
                                                  const OptionalTensor& ids, int64_t height, int64_t width, bool channels_last,
                                                  bool normalize, double eps, bool absolute) {
  const Problem p(images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute);
  const auto options = pred.options().dtype(accumulator(pred.scalar_type()));
  Tensor loss = at::empty({}, options), total = at::empty({}, options);
  Tensor stats = normalize ? at::empty({pred.size(0), pred.size(1), 2}, options) : at::empty({0}, options);
  with_accumulator(pred.scalar_type(), [&]<class T>(T) {
    forward(p, stats.mutable_data_ptr<T>(), loss.mutable_data_ptr<T>(), total.mutable_data_ptr<T>());
  });
  return {loss, total, stats};
}

Tensor patch_loss_bwd(const Tensor& grad, const Tensor& total, const Tensor& stats, const Tensor& images, const Tensor& pred,
                      const OptionalTensor& mask, const OptionalTensor& ids, int64_t height, int64_t width, bool channels_last,
                      bool normalize, double eps, bool absolute) {
  const Problem p(images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute);
  Tensor dpred = at::empty(pred.sizes(), pred.options());
  with_accumulator(pred.scalar_type(),
                   [&]<class T>(T) { backward(p, stats.const_data_ptr<T>(), grad.item<T>(), total.item<T>(), dpred); });
  return dpred;
}

}  // namespace
}  // namespace fastssl::patch_loss

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("patch_loss_fwd", &fastssl::patch_loss::patch_loss_fwd);
  m.impl("patch_loss_bwd", &fastssl::patch_loss::patch_loss_bwd);
}
