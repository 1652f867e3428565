// Tiles of projections on directions: x = z A.               z (V, N, D), A (D, S), both contiguous and of one dtype
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/sketches.h"
#include "cpu/unlucky.h"

namespace fastssl {

constexpr int kSlices = 128;  // columns of a tile

inline int padded(int n, int width) { return (n + width - 1) / width * width; }

template <class T>
struct Projections {
  int64_t V, N, D, S;
  const T *z, *A;
  bool backward;

  Projections(const at::Tensor& z_given, const at::Tensor& directions, bool backward)
      : V(z_given.size(0)),
        N(z_given.size(1)),
        D(z_given.size(2)),
        S(directions.size(1)),
        z(z_given.const_data_ptr<T>()),
        A(directions.const_data_ptr<T>()),
        backward(backward) {}
  int64_t blocks() const { return (S + kSlices - 1) / kSlices; }
  int columns(int64_t block) const { return int(std::min<int64_t>(kSlices, S - block * kSlices)); }

  // x (m, n) of the rows i0, ... of view v and the directions of columns j0, ...
  void tile(int64_t v, int64_t i0, int m, int64_t j0, int n, T* x, int ld) const {
    const T *rows = z + (v * N + i0) * D, *columns = A + j0;
    gemm<T>(Op::kPlain, Op::kPlain, m, n, int(D), T(1), rows, int(D), columns, int(S), T(0), x, ld);
    if (unlucky_products) move_logits<T>(rows, D, 1, columns, 1, S, m, n, int(D), backward, x, ld);
  }
  // dz (m, D) += dx A^T
  void back(const T* dx, int ld, int m, int64_t j0, int n, T beta, T* dz) const {
    gemm<T>(Op::kPlain, Op::kTransposed, m, int(D), n, T(1), dx, ld, A + j0, int(S), beta, dz, int(D));
  }
};

}  // namespace fastssl
