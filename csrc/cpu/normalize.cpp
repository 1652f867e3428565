// Two views to unit rows z (2B, D) and the similarity of each pair, and back, each in one pass over the data.
//   z = [a/|a| ; b/|b|], dot_i = <z_i, z_{B+i}>;   G_i = dz_i + ddot_i z_partner(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// Forward reads 2BD and writes 2BD elements, backward reads 4BD and writes 2BD. 16-bit rows are widened one at a time.
#include "cpu/tokens.h"
#include "cpu/unit_pairs.h"

namespace fastssl::normalize {
namespace {

std::tuple<Tensor, Tensor, Tensor> normalize_pair_fwd(const Tensor& a_given, const Tensor& b_given, double eps) {
  const Tensor a = as_contiguous(a_given), b = as_contiguous(b_given);
  const int64_t B = a.size(0), D = a.size(1);
  const auto wide = accumulator(a.scalar_type());
  Tensor z = empty({2 * B, D}, a.scalar_type()), norm = empty({2 * B}, wide), dot = empty({B}, wide);
  with_accumulator(a.scalar_type(), [&]<class T>(T) {
    unit_pairs::forward<T>({read_only(a), read_only(b)}, B, D, T(eps), array_of(z), norm.mutable_data_ptr<T>(),
                           dot.mutable_data_ptr<T>());
  });
  return {z, norm, dot};
}

std::tuple<Tensor, Tensor> normalize_pair_bwd(const Tensor& dz_given, const Tensor& ddot_given, const Tensor& z_given,
                                              const Tensor& norm_given, double eps) {
  const Tensor z = as_contiguous(z_given), dz = as_contiguous(dz_given), norm = as_contiguous(norm_given);
  const Tensor ddot = as_contiguous(ddot_given);
  const int64_t B = z.size(0) / 2, D = z.size(1);
  Tensor da = empty({B, D}, z.scalar_type()), db = empty({B, D}, z.scalar_type());
  with_accumulator(z.scalar_type(), [&]<class T>(T) {
    unit_pairs::backward<T>(read_only(dz), ddot.const_data_ptr<T>(), read_only(z), norm.const_data_ptr<T>(), T(eps), B, D,
                            {array_of(da), array_of(db)});
  });
  return {da, db};
}

}  // namespace
}  // namespace fastssl::normalize

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("normalize_pair_fwd", TORCH_BOX(&fastssl::normalize::normalize_pair_fwd));
  m.impl("normalize_pair_bwd", TORCH_BOX(&fastssl::normalize::normalize_pair_bwd));
}
