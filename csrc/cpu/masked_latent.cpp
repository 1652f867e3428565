// The loss of predicted latents: each row of the target is normalised and compared while it is in the first-level cache.
//   h = (t - mean) / sqrt(var + eps) of row ids[p, k] of sample p mod N,   e = pred[p, k] - h
//   row[p, k] = w mean_i d(e_i),   loss = s sum of rows,   dpred_i = g s w d'(e_i) / D,   s = 1 / (P K) for a mean, otherwise 1
// With M = P K D elements one pass reads 2 M and writes M for both the loss and the gradient of g = 1. Rows of weight 0 are not
// read.
#include "cpu/latent_rows.h"
#include "cpu/tokens.h"

namespace fastssl::masked_latent {
namespace {

constexpr const char* kOp = "masked_latent_loss";

Distance distance_of(const Text& loss) {
  if (loss == "l1") return Distance::kAbsolute;
  if (loss == "l2") return Distance::kSquare;
  if (loss == "smooth_l1") return Distance::kSmooth;
  FASTSSL_CHECK(loss == "power", kOp, ": expected a loss l1, l2, smooth_l1 or power");
  return Distance::kPower;
}

Tensor dense_rows(const Tensor& t) {
  FASTSSL_CHECK(t.dim() == 3, kOp, ": expected tensors of 3 dimensions, got ", t.sizes());
  return t.stride(2) == 1 ? t : as_contiguous(t);
}

// What a call is about: row r = p K + k of pred (P, K, D) belongs to row `place` of the target.
struct Problem {
  Tensor pred, target, ids, weight;
  LatentHow how;
  int64_t N, P, K, D;
  bool mean;

  Problem(const Tensor& pred_given, const Tensor& target_given, const OptionalTensor& ids_given, const OptionalTensor& weight_given,
          const Text& loss, double value, bool normalize, double eps, bool mean)
      : pred(dense_rows(pred_given)),
        target(dense_rows(target_given)),
        N(target.size(0)),
        P(pred.size(0)),
        K(pred.size(1)),
        D(pred.size(2)),
        mean(mean) {
    how = {distance_of(loss), value, normalize, eps, D};
    FASTSSL_CHECK(N > 0 && D > 0 && P % N == 0 && target.size(2) == D, kOp, ": expected pred and target of one width, got ",
                  pred.sizes(), " and ", target.sizes());
    if (ids_given) {
      expect_shape(kOp, *ids_given, {P, K});
      ids = as_contiguous(*ids_given);
      check_range(kOp, ids, target.size(1));
    } else {
      FASTSSL_CHECK(K == target.size(1), kOp, ": expected ", target.size(1), " rows of pred, got ", K);
    }
    if (weight_given) {
      expect_shape(kOp, *weight_given, {P, K});
      weight = as_contiguous(as_dtype(*weight_given, accumulator(pred.scalar_type())));
    }
  }
  int64_t rows() const { return P * K; }
  int64_t pred_row(int64_t r) const { return r / K * pred.stride(0) + r % K * pred.stride(1); }
  int64_t target_row(int64_t r) const {
    const int64_t l = ids.defined() ? ids.const_data_ptr<int64_t>()[r] : r % K;
    return r / K % N * target.stride(0) + l * target.stride(1);
  }
  double share() const { return mean ? 1.0 / double(rows()) : 1.0; }

  // Calls f(r, weight) for all rows, in parallel.
  template <class T, class F>
  void for_each_row(const F& f) const {
    const T* w = weight.defined() ? weight.const_data_ptr<T>() : nullptr;
    parallel_for(rows(), D, [&](int64_t begin, int64_t end) {
      std::vector<T> room(D);
      for (int64_t r = begin; r < end; r++) f(r, w ? w[r] : T(1), room.data());
    });
  }
};

// Writes the losses of the rows and returns s times their sum, which is taken in their order. Where `dpred` is given, it gets the
// gradient for g = 1.
template <class T>
T forward(const Problem& p, T* losses, const Tensor* dpred) {
  const LatentRows<T>& f = latent_rows<T>();
  const Array pred = array_of(p.pred), target = array_of(p.target), out = dpred ? array_of(*dpred) : Array{nullptr, kNothing};
  p.for_each_row<T>([&](int64_t r, T weight, T* room) {
    losses[r] = 0;
    if (weight != T(0)) {
      const T size = T(double(weight) * p.share() / double(p.D));
      const double sum = f.compare(p.how, pred, p.pred_row(r), target, p.target_row(r), size, out, r * p.D, room);
      losses[r] = T(double(weight) * sum / double(p.D));
    } else if (dpred) {
      clear(out, r * p.D, p.D);
    }
  });
  double sum = 0.0;
  for (int64_t r = 0; r < p.rows(); r++) sum += losses[r];
  return T(sum * p.share());
}

std::tuple<Tensor, Tensor> masked_latent_fwd(const Tensor& pred, const Tensor& target, const OptionalTensor& ids,
                                             const OptionalTensor& weight, const Text& loss, double value, bool normalize,
                                             double eps, bool mean) {
  const Problem p(pred, target, ids, weight, loss, value, normalize, eps, mean);
  const ScalarType wide = accumulator(pred.scalar_type());
  Tensor total = empty({}, wide), losses = empty({p.P, p.K}, wide);
  with_accumulator(pred.scalar_type(),
                   [&]<class T>(T) { *total.mutable_data_ptr<T>() = forward(p, losses.mutable_data_ptr<T>(), nullptr); });
  return {total, losses};
}

std::tuple<Tensor, Tensor> masked_latent_one_pass(const Tensor& pred, const Tensor& target, const OptionalTensor& ids,
                                                  const OptionalTensor& weight, const Text& loss, double value, bool normalize,
                                                  double eps, bool mean) {
  const Problem p(pred, target, ids, weight, loss, value, normalize, eps, mean);
  Tensor total = empty({}, accumulator(pred.scalar_type()));
  Tensor dpred = new_tensor(pred.sizes(), pred.scalar_type());
  with_accumulator(pred.scalar_type(), [&]<class T>(T) {
    std::vector<T> losses(p.rows());
    *total.mutable_data_ptr<T>() = forward(p, losses.data(), &dpred);
  });
  return {total, dpred};
}

Tensor masked_latent_bwd(const Tensor& grad_given, const Tensor& pred, const Tensor& target, const OptionalTensor& ids,
                         const OptionalTensor& weight, const Text& loss, double value, bool normalize, double eps, bool mean) {
  const Problem p(pred, target, ids, weight, loss, value, normalize, eps, mean);
  const Tensor grad = as_contiguous(as_dtype(grad_given, accumulator(pred.scalar_type())));
  if (grad.dim() != 0) expect_shape(kOp, grad, {p.P, p.K});
  Tensor dpred = new_tensor(pred.sizes(), pred.scalar_type());
  with_accumulator(pred.scalar_type(), [&]<class T>(T) {
    const LatentRows<T>& f = latent_rows<T>();
    const T* g = grad.const_data_ptr<T>();
    const bool one = grad.dim() == 0;
    const Array from = array_of(p.pred), other = array_of(p.target), out = array_of(dpred);
    p.for_each_row<T>([&](int64_t r, T row_weight, T* room) {
      if (row_weight == T(0)) return clear(out, r * p.D, p.D);
      const T size = T(double(g[one ? 0 : r]) * double(row_weight) * p.share() / double(p.D));
      f.compare(p.how, from, p.pred_row(r), other, p.target_row(r), size, out, r * p.D, room);
    });
  });
  return dpred;
}

}  // namespace
}  // namespace fastssl::masked_latent

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("masked_latent_fwd", TORCH_BOX(&fastssl::masked_latent::masked_latent_fwd));
  m.impl("masked_latent_bwd", TORCH_BOX(&fastssl::masked_latent::masked_latent_bwd));
  m.impl("masked_latent_one_pass", TORCH_BOX(&fastssl::masked_latent::masked_latent_one_pass));
}
