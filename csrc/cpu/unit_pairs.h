// Two views to unit rows and the similarity of each pair, and back: the loops of normalize.cpp and pair_step.cpp.
//   z = [a/|a| ; b/|b|], dot_i = <z_i, z_{B+i}>;   G_i = dz_i + ddot_i z_partner(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// S is the dtype of the rows; all is computed in A, which is S, or float where S has 16 bits. Such rows are widened one at a time.
#pragma once
#include <type_traits>
#include <vector>

#include "cpu/neighbour_rows.h"
#include "cpu/parallel.h"
#include "cpu/tile_rows.h"

namespace fastssl::unit_pairs {

template <class S>
Array array_of(const S* data, int64_t offset) {
  constexpr Dtype dtype = std::is_same_v<S, float>           ? kFloat32
                          : std::is_same_v<S, double>        ? kFloat64
                          : std::is_same_v<S, c10::BFloat16> ? kBFloat16
                                                             : kFloat16;
  return {const_cast<S*>(data) + offset, dtype};
}

// One row in the accumulator type: the row itself, or its widened copy in `buffer`.
template <class A, class S>
const A* widened(const S* row, int64_t D, A* buffer) {
  if constexpr (std::is_same_v<A, S>) return row;
  for (int64_t d = 0; d < D; d++) buffer[d] = A(row[d]);
  return buffer;
}

// norm is |a_i| and |b_i|, but at least eps.
template <class A, class S>
void forward(const S* const views[2], int64_t B, int64_t D, A eps, S* z, A* norm, A* dot) {
  const auto& f = rows<A>();
  const auto& g = neighbour_rows<A>();
  parallel_for(B, 2 * D, [&](int64_t begin, int64_t end) {
    std::vector<A> wide(std::is_same_v<A, S> ? 0 : 2 * D);
    for (int64_t i = begin; i < end; i++) {
      const A* unit[2];
      for (int side = 0; side < 2; side++) {
        const int64_t r = side * B + i;
        S* to = z + r * D;
        A* x = wide.data() + side * D;
        if constexpr (std::is_same_v<A, S>) x = to;
        const A length = g.unit(array_of(views[side], i * D), 0, D, eps, x);
        norm[r] = length < eps ? eps : length;
        if constexpr (!std::is_same_v<A, S>)
          for (int64_t d = 0; d < D; d++) to[d] = S(x[d]);
        unit[side] = widened<A>(to, D, x);
      }
      dot[i] = f.dot(unit[0], unit[1], D);
    }
  });
}

template <class A, class S>
void backward(const S* dz, const A* ddot, const S* z, const A* norm, A eps, int64_t B, int64_t D, S* const out[2]) {
  const auto& f = neighbour_rows<A>();
  parallel_for(B, 2 * D, [&](int64_t begin, int64_t end) {
    std::vector<A> wide(std::is_same_v<A, S> ? 0 : 2 * D), g(D);
    for (int64_t i = begin; i < end; i++) {
      const A* unit[2] = {widened<A>(z + i * D, D, wide.data()), widened<A>(z + (B + i) * D, D, wide.data() + D)};
      for (int side = 0; side < 2; side++) {
        const int64_t r = side * B + i;
        for (int64_t d = 0; d < D; d++) g[d] = A(dz[r * D + d]) + ddot[i] * unit[1 - side][d];
        const bool project = norm[r] > eps;  // a clamped norm is a constant
        f.write(unit[side], g.data(), D, A(0), project, A(1) / norm[r], array_of(out[side], i * D), 0);
      }
    }
  });
}

}  // namespace fastssl::unit_pairs
