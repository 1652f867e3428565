// Two views to unit rows z (2B, D) and the similarity of each pair, and back, each in one pass over the data.
//   z = [a/|a| ; b/|b|], dot_i = <z_i, z_{B+i}>;   G_i = dz_i + ddot_i z_partner(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// Forward reads 2BD and writes 2BD elements, backward reads 4BD and writes 2BD. 16-bit rows are widened one at a time.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tile_rows.h"

namespace fastssl::normalize {
namespace {

using at::Tensor;

// One row in the accumulator type: the row itself, or its widened copy in `buffer`.
template <class A, class S>
const A* widened(const S* row, int64_t D, A* buffer) {
  if constexpr (std::is_same_v<A, S>) return row;
  for (int64_t d = 0; d < D; d++) buffer[d] = A(row[d]);
  return buffer;
}

template <class A, class S>
void forward(const S* const views[2], int64_t B, int64_t D, A eps, S* z, A* norm, A* dot) {
  const auto& f = rows<A>();
  parallel_for(B, D, [&](int64_t begin, int64_t end) {
    std::vector<A> wide(2 * D);
    for (int64_t i = begin; i < end; i++) {
      for (int side = 0; side < 2; side++) {
        const int64_t r = side * B + i;
        const A* v = widened<A>(views[side] + i * D, D, wide.data() + side * D);
        const A length = std::sqrt(f.dot(v, v, D));
        norm[r] = length < eps ? eps : length;
        for (int64_t d = 0; d < D; d++) z[r * D + d] = S(v[d] / norm[r]);
      }
      const A* z0 = widened<A>(z + i * D, D, wide.data());
      dot[i] = f.dot(z0, widened<A>(z + (B + i) * D, D, wide.data() + D), D);
    }
  });
}

template <class A, class S>
void backward(const S* dz, const A* ddot, const S* z, const A* norm, A eps, int64_t B, int64_t D, S* const out[2]) {
  const auto& f = rows<A>();
  parallel_for(B, D, [&](int64_t begin, int64_t end) {
    std::vector<A> wide(2 * D), g(D);
    for (int64_t i = begin; i < end; i++) {
      const A* unit[2] = {widened<A>(z + i * D, D, wide.data()), widened<A>(z + (B + i) * D, D, wide.data() + D)};
      for (int side = 0; side < 2; side++) {
        const int64_t r = side * B + i;
        const A *own = unit[side], *partner = unit[1 - side];
        for (int64_t d = 0; d < D; d++) g[d] = A(dz[r * D + d]) + ddot[i] * partner[d];
        const A along = norm[r] > eps ? f.dot(own, g.data(), D) : A(0);  // a clamped norm is a constant
        for (int64_t d = 0; d < D; d++) out[side][i * D + d] = S((g[d] - own[d] * along) / norm[r]);
      }
    }
  });
}

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
    forward<A>(views, B, D, A(eps), z.mutable_data_ptr<scalar_t>(), norm.mutable_data_ptr<A>(), dot.mutable_data_ptr<A>());
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
    backward<A>(dz.const_data_ptr<scalar_t>(), ddot.const_data_ptr<A>(), z.const_data_ptr<scalar_t>(), norm.const_data_ptr<A>(),
                A(eps), B, D, out);
  });
  return {da, db};
}

}  // namespace
}  // namespace fastssl::normalize

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("normalize_pair_fwd", &fastssl::normalize::normalize_pair_fwd);
  m.impl("normalize_pair_bwd", &fastssl::normalize::normalize_pair_bwd);
}
