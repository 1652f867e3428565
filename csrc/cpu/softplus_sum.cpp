// Log-sum-exps over the negatives and logits of the positives -> their loss, and its gradients.
//   total = w sum_i softplus(u_i), u_i = lse_i - scale positive_(i mod P);   dlse_i = g w sigmoid(u_i),
//   dpositive_j = -scale sum of dlse_i over i mod P = j;   w = 1 / N for a mean, otherwise 1.   N + P numbers each way.
#include "cpu/softplus.h"
#include "cpu/tokens.h"

namespace fastssl::softplus_sum {
namespace {

double weight(const Tensor& lse, bool mean) { return mean ? 1.0 / double(lse.numel()) : 1.0; }

Tensor softplus_sum_fwd(const Tensor& lse_given, const Tensor& positive_given, double scale, bool mean) {
  const Tensor lse = as_contiguous(lse_given), positive = as_contiguous(positive_given);
  const int64_t N = lse.numel(), P = positive.numel();
  Tensor total = empty({}, lse.scalar_type());
  with_accumulator(lse.scalar_type(), [&]<class T>(T) {
    const T *l = lse.const_data_ptr<T>(), *s = positive.const_data_ptr<T>();
    double sum = 0.0;
    for (int64_t first = 0; first < N; first += P)
      for (int64_t j = 0; j < P; j++) sum += softplus(double(l[first + j]) - scale * double(s[j]));
    *total.mutable_data_ptr<T>() = T(sum * weight(lse, mean));
  });
  return total;
}

std::tuple<Tensor, Tensor> softplus_sum_bwd(const Tensor& dtotal, const Tensor& lse_given, const Tensor& positive_given,
                                            double scale, bool mean) {
  const Tensor lse = as_contiguous(lse_given), positive = as_contiguous(positive_given);
  const int64_t N = lse.numel(), P = positive.numel();
  Tensor dlse = empty(lse.sizes(), lse.scalar_type()), dpositive = empty(positive.sizes(), positive.scalar_type());
  with_accumulator(lse.scalar_type(), [&]<class T>(T) {
    const T *l = lse.const_data_ptr<T>(), *s = positive.const_data_ptr<T>();
    T *dl = dlse.mutable_data_ptr<T>(), *ds = dpositive.mutable_data_ptr<T>();
    const double share = double(*dtotal.const_data_ptr<T>()) * weight(lse, mean);
    for (int64_t j = 0; j < P; j++) {
      double sum = 0.0;
      for (int64_t i = j; i < N; i += P) {
        const double d = share * sigmoid(double(l[i]) - scale * double(s[j]));
        dl[i] = T(d);
        sum += d;
      }
      ds[j] = T(-scale * sum);
    }
  });
  return {dlse, dpositive};
}

}  // namespace
}  // namespace fastssl::softplus_sum

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("softplus_sum_fwd", TORCH_BOX(&fastssl::softplus_sum::softplus_sum_fwd));
  m.impl("softplus_sum_bwd", TORCH_BOX(&fastssl::softplus_sum::softplus_sum_bwd));
}
