// Log-sum-exps over the negatives and logits of the positives -> their loss, and its gradients.
//   total = w sum_i softplus(u_i), u_i = lse_i - scale positive_(i mod P);   dlse_i = g w sigmoid(u_i),
//   dpositive_j = -scale sum of dlse_i over i mod P = j;   w = 1 / N for a mean, otherwise 1.   N + P numbers each way.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "cpu/softplus.h"

namespace fastssl::softplus_sum {
namespace {

using at::Tensor;

double weight(const Tensor& lse, bool mean) { return mean ? 1.0 / double(lse.numel()) : 1.0; }

Tensor softplus_sum_fwd(const Tensor& lse_given, const Tensor& positive_given, double scale, bool mean) {
  const Tensor lse = lse_given.contiguous(), positive = positive_given.contiguous();
  const int64_t N = lse.numel(), P = positive.numel();
  Tensor total = at::empty({}, lse.options());
  AT_DISPATCH_FLOATING_TYPES(lse.scalar_type(), "softplus_sum_fwd", [&] {
    const scalar_t *l = lse.const_data_ptr<scalar_t>(), *s = positive.const_data_ptr<scalar_t>();
    double sum = 0.0;
    for (int64_t first = 0; first < N; first += P)
      for (int64_t j = 0; j < P; j++) sum += softplus(double(l[first + j]) - scale * double(s[j]));
    *total.mutable_data_ptr<scalar_t>() = scalar_t(sum * weight(lse, mean));
  });
  return total;
}

std::tuple<Tensor, Tensor> softplus_sum_bwd(const Tensor& dtotal, const Tensor& lse_given, const Tensor& positive_given,
                                            double scale, bool mean) {
  const Tensor lse = lse_given.contiguous(), positive = positive_given.contiguous();
  const int64_t N = lse.numel(), P = positive.numel();
  Tensor dlse = at::empty_like(lse), dpositive = at::empty_like(positive);
  AT_DISPATCH_FLOATING_TYPES(lse.scalar_type(), "softplus_sum_bwd", [&] {
    const scalar_t *l = lse.const_data_ptr<scalar_t>(), *s = positive.const_data_ptr<scalar_t>();
    scalar_t *dl = dlse.mutable_data_ptr<scalar_t>(), *ds = dpositive.mutable_data_ptr<scalar_t>();
    const double share = double(*dtotal.const_data_ptr<scalar_t>()) * weight(lse, mean);
    for (int64_t j = 0; j < P; j++) {
      double sum = 0.0;
      for (int64_t i = j; i < N; i += P) {
        const double d = share * sigmoid(double(l[i]) - scale * double(s[j]));
        dl[i] = scalar_t(d);
        sum += d;
      }
      ds[j] = scalar_t(-scale * sum);
    }
  });
  return {dlse, dpositive};
}

}  // namespace
}  // namespace fastssl::softplus_sum

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("softplus_sum_fwd", &fastssl::softplus_sum::softplus_sum_fwd);
  m.impl("softplus_sum_bwd", &fastssl::softplus_sum::softplus_sum_bwd);
}
