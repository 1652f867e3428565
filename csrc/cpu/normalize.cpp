// Two views to unit rows z (2B, D) and the similarity of each pair, and back, each in one pass over the data.
//   z = [a/|a| ; b/|b|], dot_i = <z_i, z_{B+i}>;   G_i = dz_i + ddot_i z_partner(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// Forward reads 2BD and writes 2BD elements, backward reads 4BD and writes 2BD. 16-bit rows are widened one at a time.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/unit_pairs.h"

namespace fastssl::normalize {
namespace {

using at::Tensor;

at::ScalarType accumulator(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

std::tuple<Tensor, Tensor, Tensor> normalize_pair_fwd(const Tensor& a_given, const Tensor& b_given, double eps) {
  const Tensor a = a_given.contiguous(), b = b_given.contiguous();
  const int64_t B = a.size(0), D = a.size(1);
  const auto wide = a.options().dtype(accumulator(a));
  Tensor z = at::empty({2 * B, D}, a.options()), norm = at::empty({2 * B}, wide), dot = at::empty({B}, wide);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "normalize_pair_fwd", [&] {
    using A = Accumulator<scalar_t>;
    const scalar_t* const views[2] = {a.const_data_ptr<scalar_t>(), b.const_data_ptr<scalar_t>()};
    unit_pairs::forward<A>(views, B, D, A(eps), z.mutable_data_ptr<scalar_t>(), norm.mutable_data_ptr<A>(),
                           dot.mutable_data_ptr<A>());
  });
  return {z, norm, dot};
}

std::tuple<Tensor, Tensor> normalize_pair_bwd(const Tensor& dz_given, const Tensor& ddot_given, const Tensor& z_given,
                                              const Tensor& norm_given, double eps) {
  const Tensor z = z_given.contiguous(), dz = dz_given.contiguous(), norm = norm_given.contiguous();
  const Tensor ddot = ddot_given.contiguous();
  const int64_t B = z.size(0) / 2, D = z.size(1);
  Tensor da = at::empty({B, D}, z.options()), db = at::empty({B, D}, z.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "normalize_pair_bwd", [&] {
    using A = Accumulator<scalar_t>;
    scalar_t* const out[2] = {da.mutable_data_ptr<scalar_t>(), db.mutable_data_ptr<scalar_t>()};
    unit_pairs::backward<A>(dz.const_data_ptr<scalar_t>(), ddot.const_data_ptr<A>(), z.const_data_ptr<scalar_t>(),
                            norm.const_data_ptr<A>(), A(eps), B, D, out);
  });
  return {da, db};
}

}  // namespace
}  // namespace fastssl::normalize

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("normalize_pair_fwd", &fastssl::normalize::normalize_pair_fwd);
  m.impl("normalize_pair_bwd", &fastssl::normalize::normalize_pair_bwd);
}
