// Tiles of projections on directions: x = z A and, for gradients, dz = dx A^T.       z (V, N, D), A (D, S), both contiguous and of
// one dtype. A is packed once, in blocks of columns: D S elements for each of the two products.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/new_tensor.h"
#include "cpu/parallel.h"
#include "cpu/sketches.h"
#include "cpu/unlucky.h"

namespace fastssl {

constexpr int kSlices = 128;  // columns of a tile, at most

inline int padded(int n, int width) { return (n + width - 1) / width * width; }

template <class T>
class Projections {
 public:
  const int64_t V, N, D, S, wide, blocks;  // blocks of `wide` columns

  Projections(const Tensor& z_given, const Tensor& directions, int64_t wide, bool gradient, bool backward)
      : V(z_given.size(0)),
        N(z_given.size(1)),
        D(z_given.size(2)),
        S(directions.size(1)),
        wide(wide),
        blocks((S + wide - 1) / wide),
        z_(z_given.const_data_ptr<T>()),
        backward_(backward),
        columns_size_(product_.size(D, wide)),
        rows_size_(gradient ? product_.size(wide, D) : 0),
        packed_(new_tensor({blocks * (columns_size_ + rows_size_)}, z_given.scalar_type())) {
    const Array A = array_of(directions);
    parallel_for(blocks, 2 * D * wide, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; block++) {
        product_.pack({A, block * wide, S, 1}, int(D), columns(block), columns_of(block));
        if (gradient) product_.pack({A, block * wide, 1, S}, columns(block), int(D), rows_of(block));
      }
    });
  }
  int columns(int64_t block) const { return int(std::min(wide, S - block * wide)); }

  // x (m, columns) of the rows i0, ... of view v and the directions of a block
  void tile(int64_t v, int64_t i0, int m, int64_t block, T* x, int ld) const {
    const Left<T> rows{z_ + (v * N + i0) * D, D, 1};
    const T* right = columns_of(block);
    const int n = columns(block);
    product_.multiply(rows, right, m, n, int(D), 1.0, false, x, ld);
    if (unlucky_products) move_logits<T>(rows, right, product_.panel, m, n, int(D), backward_, x, ld);
  }
  // dz (m, D) = dx A^T of a block, or += where `add`
  void back(const T* dx, int ld, int m, int64_t block, bool add, T* dz) const {
    product_.multiply({dx, ld, 1}, rows_of(block), m, int(D), columns(block), 1.0, add, dz, D);
  }

 private:
  T* columns_of(int64_t block) const { return packed_.template mutable_data_ptr<T>() + block * (columns_size_ + rows_size_); }
  T* rows_of(int64_t block) const { return columns_of(block) + columns_size_; }

  const Products<T>& product_ = products<T>();
  const T* z_;
  bool backward_;
  int64_t columns_size_, rows_size_;
  Tensor packed_;
};

}  // namespace fastssl
