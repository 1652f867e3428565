// A step of Adam on the rows of a table that a sparse gradient holds: 28 bytes of an element in float32, each read or written once.
#include "cpu/tokens.h"
#include "cpu/word_rows.h"

namespace fastssl::sparse_adam {
namespace {

constexpr const char* kOp = "sparse_adam";

// The rows differ from each other.
void sparse_adam_(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& rows_given,
                  const Tensor& values, double rate, double beta1, double beta2, double eps) {
  FASTSSL_CHECK(param.dim() == 2 && param.stride(1) == 1, kOp, ": expected param (V, D) with dense rows, got ", param.sizes());
  const int64_t D = param.size(1), R = rows_given.numel();
  for (const Tensor& state : {exp_avg, exp_avg_sq}) {
    expect_shape(kOp, state, param.sizes());
    FASTSSL_CHECK(state.strides().equals(param.strides()), kOp, ": expected a state with the strides of its parameter");
  }
  expect_dense(kOp, values, {R, D});
  const Tensor rows = as_contiguous(rows_given);
  check_range(kOp, rows, param.size(0));
  const RowAdamRule rule{rate, beta1, beta2, eps};
  const Array p = array_of(param), m = array_of(exp_avg), v = array_of(exp_avg_sq), g = array_of(values);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const int64_t stride = param.stride(0);
  with_accumulator(param.scalar_type(), [&]<class T>(T) {
    const auto adam = word_rows<T>().adam;
    parallel_for(R, 4 * D, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) adam(p, m, v, row[r] * stride, g, r * D, D, rule);
    });
  });
}

}  // namespace
}  // namespace fastssl::sparse_adam

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("sparse_adam_", TORCH_BOX(&fastssl::sparse_adam::sparse_adam_)); }
