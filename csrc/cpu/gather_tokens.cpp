// Some tokens of each sample, copied as whole rows, and the gradient, which is zeros, a copy, or a sum for each row.
//   out[n, k] = x[n, ids[n, k]];   dx[n, l] = sum over k with ids[n, k] = l of dout[n, k]
// 2 N K D and N (K + L) D elements are moved.
#include "cpu/new_rows.h"

namespace fastssl::gather_tokens {
namespace {

Tensor gather_tokens_fwd(const Tensor& x_given, const Tensor& ids_given) {
  FASTSSL_CHECK(x_given.dim() == 3, "gather_tokens: expected x (N, L, D), got ", x_given.sizes());
  expect_ids("gather_tokens", ids_given, x_given.size(0));
  const Tensor x = x_given.stride(2) == 1 ? x_given : as_contiguous(x_given), ids = as_contiguous(ids_given);
  check_range("gather_tokens", ids, x.size(1));
  const int64_t N = x.size(0), K = ids.size(1), D = x.size(2), sample = x.stride(0), row = x.stride(1);
  Tensor out = new_tensor({N, K, D}, x.scalar_type());
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const Array from = array_of(x);
  parallel_for(N * K, D, [&](int64_t begin, int64_t end) {
    NewRows<float> to(out, int64_t(bytes_of(out)));
    for (int64_t r = begin; r < end; r++) {
      if (r + 1 < end) prefetch(from, (r + 1) / K * sample + id[r + 1] * row, D);
      to.copy(from, r / K * sample + id[r] * row, r * D, D);
    }
  });
  return out;
}

Tensor gather_tokens_bwd(const Tensor& dout_given, const Tensor& ids_given, int64_t length) {
  FASTSSL_CHECK(dout_given.dim() == 3 && length >= 0, "gather_tokens: expected dout (N, K, D), got ", dout_given.sizes());
  expect_shape("gather_tokens", ids_given, dout_given.sizes().slice(0, 2));
  const Tensor dout = dout_given.stride(2) == 1 ? dout_given : as_contiguous(dout_given), ids = as_contiguous(ids_given);
  check_range("gather_tokens", ids, length);
  const int64_t N = dout.size(0), D = dout.size(2), sample = dout.stride(0), row = dout.stride(1);
  Tensor dx = new_tensor({N, length, D}, dout.scalar_type());
  const Matches matches(ids, length);
  const Array from = array_of(dout);
  with_accumulator(dout.scalar_type(), [&]<class T>(T) {
    parallel_for(N * length, D, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer;
      NewRows<T> to(dx, int64_t(bytes_of(dout)));
      for (int64_t r = begin; r < end; r++) {
        const int64_t ahead = std::min(r + kAhead, end - 1), k = matches.first(ahead / length, ahead % length);
        if (k >= 0) prefetch(from, ahead / length * sample + k * row, D);
        write_matches(matches, r / length, r % length, from, r / length * sample, row, to, r * D, D, buffer);
      }
    });
  });
  return dx;
}

}  // namespace
}  // namespace fastssl::gather_tokens

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("gather_tokens_fwd", TORCH_BOX(&fastssl::gather_tokens::gather_tokens_fwd));
  m.impl("gather_tokens_bwd", TORCH_BOX(&fastssl::gather_tokens::gather_tokens_bwd));
}
