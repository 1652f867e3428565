// MAE's loss over the removed patches; the target is made from the image patch by patch, in the first-level cache.
//   loss = sum m mean_i d(pred_i - t_i) / sum m,  t <- (t - mean) / sqrt(var + eps) where normalised,  d(e) = e^2 or |e|
//   dpred_i = g m d'(e) / (P sum m);  rows of weight 0 are not read, their gradient is 0
// With M = N L P elements and a share r of removed patches, the forward reads 2 r M elements, and the backward reads 2 r M and
// writes M. One pass, which makes the gradient for g = 1 beside the loss, reads 2 r M and writes M for both.
#include "cpu/tokens.h"

namespace fastssl::patch_loss {
namespace {

// The errors of so many rows are summed together, so that every number of threads gives the same sums.
constexpr int64_t kRows = 64;

// What a call of the forward or the backward is about: row i = n R + r of pred (N, R, P) belongs to patch l of image n with weight
// m.
struct Problem {
  Tensor images, pred, ids, mask;
  PatchShape shape;
  int64_t R, across;
  double eps;
  bool normalize, absolute;

  static const Tensor& checked(const Tensor& images, const Tensor& pred, int64_t height, int64_t width) {
    expect_images("masked_patch_loss", images.sizes(), height, width);
    FASTSSL_CHECK(pred.dim() == 3, "masked_patch_loss: expected pred (N, R, P), got ", pred.sizes());
    return images;
  }
  Problem(const Tensor& images_given, const Tensor& pred_given, const OptionalTensor& mask_given, const OptionalTensor& ids_given,
          int64_t height, int64_t width, bool channels_last, bool normalize, double eps, bool absolute)
      : images(checked(images_given, pred_given, height, width).stride(3) == 1 ? images_given : as_contiguous(images_given)),
        pred(pred_given.stride(2) == 1 ? pred_given : as_contiguous(pred_given)),
        shape{images.size(1), height, width, images.stride(1), images.stride(2), channels_last},
        R(pred.size(1)),
        across(images.size(3) / width),
        eps(eps),
        normalize(normalize),
        absolute(absolute) {
    const char* op = "masked_patch_loss";
    const int64_t length = images.size(2) / height * across;
    expect_shape(op, pred, {images.size(0), ids_given ? R : length, shape.entries()});
    if (mask_given) expect_shape(op, *mask_given, pred.sizes().slice(0, 2));
    if (ids_given) {
      expect_shape(op, *ids_given, pred.sizes().slice(0, 2));
      ids = as_contiguous(*ids_given);
      check_range(op, ids, length);
    }
    if (mask_given) mask = as_contiguous(*mask_given);
  }
  int64_t rows() const { return pred.size(0) * R; }
  float weight(int64_t i) const { return mask.defined() ? mask.const_data_ptr<float>()[i] : 1.0f; }
  int64_t pred_row(int64_t i) const { return i / R * pred.stride(0) + i % R * pred.stride(1); }

  // First pixel of the row's patch.
  int64_t corner(int64_t i) const {
    const int64_t l = ids.defined() ? ids.const_data_ptr<int64_t>()[i] : i % R;
    return i / R * images.stride(0) + l / across * shape.height * shape.row + l % across * shape.width;
  }

  // Prefetches a share of the next row of patches, along the image's lines. A single patch lies in C p places, which the machine's
  // prefetcher does not foresee.
  void prefetch(int64_t i) const {
    const int64_t far = i + across;
    if (far >= rows() || ids.defined()) return;
    const int64_t share = shape.height * shape.width, column = far % R % across;
    const int64_t band = far / R * images.stride(0) + far % R / across * shape.height * shape.row;
    const Array image = array_of(images);
    for (int64_t c = 0; c < shape.channels; c++) {
      const char* from = static_cast<const char*>(image.data) + (band + c * shape.plane + column * share) * bytes_of(image.dtype);
      for (int64_t b = 0; b < share * bytes_of(image.dtype); b += 64) __builtin_prefetch(from + b);
    }
  }

  template <class T>
  void target(int64_t i, T* out) const {
    token_rows<T>().patch(array_of(images), corner(i), shape, out);
  }

  // g m / (P sum m)
  template <class T>
  T size(int64_t i, T grad, T total) const {
    return total > T(0) && weight(i) != 0.0f ? grad * T(weight(i)) / (total * T(shape.entries())) : T(0);
  }

  template <class T>
  void gradient(int64_t i, T size, const std::vector<T>& target, Scaling<T> scaling, const Tensor& dpred) const {
    const Array out = array_of(dpred);
    const int64_t entries = shape.entries();
    if (size == T(0)) clear(out, i * entries, entries);
    else
      token_rows<T>().slope(array_of(pred), pred_row(i), entries, target.data(), scaling, absolute, absolute ? size : T(2) * size,
                            out, i * entries);
  }
};

// Adds up the weighted errors of the rows and their weights; where `dpred` is given, writes its rows for an upstream gradient of 1.
template <class T>
void forward(const Problem& p, T* stats, const Tensor* dpred, T* loss, T* total) {
  const TokenRows<T>& f = token_rows<T>();
  const int64_t rows = p.rows(), entries = p.shape.entries(), groups = (rows + kRows - 1) / kRows;
  double weight_sum = 0.0;
  for (int64_t i = 0; i < rows; i++) weight_sum += p.weight(i);
  std::vector<double> losses(groups, 0.0);
  parallel_for(groups, kRows * entries, [&](int64_t begin, int64_t end) {
    std::vector<T> target(entries);
    for (int64_t group = begin; group < end; group++)
      for (int64_t i = group * kRows; i < std::min(rows, (group + 1) * kRows); i++) {
        const double weight = p.weight(i);
        p.prefetch(i);
        Scaling<T> scaling{T(0), T(1)};
        if (weight != 0.0) {
          p.target(i, target.data());
          if (p.normalize) scaling = f.scaling(target.data(), entries, p.eps);
          losses[group] +=
              weight * f.error(array_of(p.pred), p.pred_row(i), entries, target.data(), scaling, p.absolute) / double(entries);
        }
        if (stats) stats[2 * i] = scaling.mean, stats[2 * i + 1] = scaling.scale;
        if (dpred) p.gradient(i, p.size(i, T(1), T(weight_sum)), target, scaling, *dpred);
      }
  });
  double sum = 0.0;
  for (double each : losses) sum += each;
  *total = T(weight_sum), *loss = weight_sum > 0.0 ? T(sum / weight_sum) : T(0);
}

template <class T>
void backward(const Problem& p, const T* stats, T grad, T total, const Tensor& dpred) {
  parallel_for(p.rows(), p.shape.entries(), [&](int64_t begin, int64_t end) {
    std::vector<T> target(p.shape.entries());
    for (int64_t i = begin; i < end; i++) {
      const T size = p.size(i, grad, total);
      p.prefetch(i);
      if (size != T(0)) p.target(i, target.data());
      p.gradient(i, size, target, p.normalize ? Scaling<T>{stats[2 * i], stats[2 * i + 1]} : Scaling<T>{T(0), T(1)}, dpred);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> patch_loss_fwd(const Tensor& images, const Tensor& pred, const OptionalTensor& mask,
                                                  const OptionalTensor& ids, int64_t height, int64_t width, bool channels_last,
                                                  bool normalize, double eps, bool absolute) {
  const Problem p(images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute);
  const ScalarType wide = accumulator(pred.scalar_type());
  Tensor loss = empty({}, wide), total = empty({}, wide);
  Tensor stats = normalize ? empty({pred.size(0), pred.size(1), 2}, wide) : empty({0}, wide);
  with_accumulator(pred.scalar_type(), [&]<class T>(T) {
    forward(p, normalize ? stats.mutable_data_ptr<T>() : nullptr, nullptr, loss.mutable_data_ptr<T>(), total.mutable_data_ptr<T>());
  });
  return {loss, total, stats};
}

Tensor patch_loss_bwd(const Tensor& grad, const Tensor& total, const Tensor& stats, const Tensor& images, const Tensor& pred,
                      const OptionalTensor& mask, const OptionalTensor& ids, int64_t height, int64_t width, bool channels_last,
                      bool normalize, double eps, bool absolute) {
  const Problem p(images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute);
  if (normalize) expect_dense("masked_patch_loss", stats, {pred.size(0), pred.size(1), 2});
  Tensor dpred = new_tensor(pred.sizes(), pred.scalar_type());
  with_accumulator(pred.scalar_type(),
                   [&]<class T>(T) { backward(p, stats.const_data_ptr<T>(), T(as_double(grad)), T(as_double(total)), dpred); });
  return dpred;
}

std::tuple<Tensor, Tensor> patch_loss_one_pass(const Tensor& images, const Tensor& pred, const OptionalTensor& mask,
                                               const OptionalTensor& ids, int64_t height, int64_t width, bool channels_last,
                                               bool normalize, double eps, bool absolute) {
  const Problem p(images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute);
  Tensor loss = empty({}, accumulator(pred.scalar_type())), total = empty({}, loss.scalar_type());
  Tensor dpred = new_tensor(pred.sizes(), pred.scalar_type());
  with_accumulator(pred.scalar_type(),
                   [&]<class T>(T) { forward<T>(p, nullptr, &dpred, loss.mutable_data_ptr<T>(), total.mutable_data_ptr<T>()); });
  return {loss, dpred};
}

}  // namespace
}  // namespace fastssl::patch_loss

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("patch_loss_fwd", TORCH_BOX(&fastssl::patch_loss::patch_loss_fwd));
  m.impl("patch_loss_bwd", TORCH_BOX(&fastssl::patch_loss::patch_loss_bwd));
  m.impl("patch_loss_one_pass", TORCH_BOX(&fastssl::patch_loss::patch_loss_one_pass));
}
