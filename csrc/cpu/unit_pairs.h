// Two views to unit rows and the similarity of each pair, and back: the loops of normalize.cpp, pair_step.cpp and cross_step.cpp.
//   z = [a/|a| ; b/|b|], dot_i = <z_i, z_{B+i}>;   G_i = dz_i + ddot_i z_partner(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// Arrays may have 16 bits, and each its own dtype. All is computed in T, float or double; rows are widened one at a time. What
// follows from z follows from its rows as they were rounded, so that terms which cancel in a gradient belong to the same rows.
#pragma once
#include <vector>

#include "cpu/neighbour_rows.h"
#include "cpu/parallel.h"
#include "cpu/tile_rows.h"

namespace fastssl {

// The array of a tensor that is only read. One that shares its memory until somebody writes goes on sharing it.
inline Array read_only(const Tensor& tensor) { return {const_cast<void*>(tensor.const_data_ptr()), dtype_of(tensor)}; }

namespace unit_pairs {

constexpr double kEps = 1e-12;  // the least norm, as in torch.nn.functional.normalize

// Brings a row of D elements, from element `from` of `given` on, to unit length and writes it to z from element `to` on; norm is
// its length, but at least eps. Returns the row as z holds it, which `buffer` holds where z has another dtype than T.
template <class T>
const T* unit_row(const Array& given, int64_t from, int64_t D, T eps, const Array& z, int64_t to, T* buffer, T* norm) {
  const auto& f = neighbour_rows<T>();
  const bool in_place = z.dtype == (std::is_same_v<T, float> ? kFloat32 : kFloat64);
  T* x = in_place ? static_cast<T*>(z.data) + to : buffer;
  const T length = f.unit(given, from, D, eps, x);
  *norm = length < eps ? eps : length;
  if (in_place) return x;
  f.store(x, D, z, to);
  return f.values(z, to, D, buffer);
}

// norm is |a_i| and |b_i|, but at least eps.
template <class T>
void forward(const Array (&views)[2], int64_t B, int64_t D, T eps, const Array& z, T* norm, T* dot) {
  const auto& f = rows<T>();
  parallel_for(B, 2 * D, [&](int64_t begin, int64_t end) {
    std::vector<T> wide(2 * D);
    for (int64_t i = begin; i < end; i++) {
      const T* a = unit_row(views[0], i * D, D, eps, z, i * D, wide.data(), norm + i);
      const T* b = unit_row(views[1], i * D, D, eps, z, (B + i) * D, wide.data() + D, norm + B + i);
      dot[i] = f.dot(a, b, D);
    }
  });
}

template <class T>
void backward(const Array& dz, const T* ddot, const Array& z, const T* norm, T eps, int64_t B, int64_t D, const Array (&out)[2]) {
  const auto& f = neighbour_rows<T>();
  parallel_for(B, 2 * D, [&](int64_t begin, int64_t end) {
    std::vector<T> wide(4 * D);
    T *G = wide.data() + 2 * D, *buffer = wide.data() + 3 * D;
    for (int64_t i = begin; i < end; i++) {
      const T* unit[2] = {f.values(z, i * D, D, wide.data()), f.values(z, (B + i) * D, D, wide.data() + D)};
      for (int side = 0; side < 2; side++) {
        const int64_t r = side * B + i;
        const T *sums = f.values(dz, r * D, D, buffer), *partner = unit[1 - side];
        for (int64_t d = 0; d < D; d++) G[d] = sums[d] + ddot[i] * partner[d];
        const bool project = norm[r] > eps;  // a clamped norm is a constant
        f.write(unit[side], G, D, T(0), project, T(1) / norm[r], out[side], i * D);
      }
    }
  });
}

}  // namespace unit_pairs
}  // namespace fastssl
