// Two views to unit rows z (2B, D) and the similarity of each pair, and back, each in one pass over the data.
//   z = [a/|a| ; b/|b|], dot_i = <z_i, z_{B+i}>;   G_i = dz_i + ddot_i z_partner(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// Forward reads 2BD and writes 2BD elements, backward reads 4BD and writes 2BD. 16-bit rows are widened one at a time.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/tokens.h"
#include "cpu/unit_pairs.h"

namespace fastssl::normalize {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor> normalize_pair_fwd(const Tensor& a_given, const Tensor& b_given, double eps) {
  const Tensor a = a_given.contiguous(), b = b_given.contiguous();
  const int64_t B = a.size(0), D = a.size(1);
  const auto wide = a.options().dtype(accumulator(a.scalar_type()));
  Tensor z = at::empty({2 * B, D}, a.options()), norm = at::empty({2 * B}, wide), dot = at::empty({B}, wide);
  with_accumulator(a.scalar_type(), [&]<class T>(T) {
    unit_pairs::forward<T>({read_only(a), read_only(b)}, B, D, T(eps), array_of(z), norm.mutable_data_ptr<T>(),
                           dot.mutable_data_ptr<T>());
  });
  return {z, norm, dot};
}

std::tuple<Tensor, Tensor> normalize_pair_bwd(const Tensor& dz_given, const Tensor& ddot_given, const Tensor& z_given,
                                              const Tensor& norm_given, double eps) {
  const Tensor z = z_given.contiguous(), dz = dz_given.contiguous(), norm = norm_given.contiguous();
  const Tensor ddot = ddot_given.contiguous();
  const int64_t B = z.size(0) / 2, D = z.size(1);
  Tensor da = at::empty({B, D}, z.options()), db = at::empty({B, D}, z.options());
  with_accumulator(z.scalar_type(), [&]<class T>(T) {
    unit_pairs::backward<T>(read_only(dz), ddot.const_data_ptr<T>(), read_only(z), norm.const_data_ptr<T>(), T(eps), B, D,
                            {array_of(da), array_of(db)});
  });
  return {da, db};
}

}  // namespace
}  // namespace fastssl::normalize

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("normalize_pair_fwd", &fastssl::normalize::normalize_pair_fwd);
  m.impl("normalize_pair_bwd", &fastssl::normalize::normalize_pair_bwd);
}
