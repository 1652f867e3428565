// The similarity log-sum-exp of rows with themselves: similarity.cpp has the equations.              x (N, D), U = 2 N^2 D FLOP
// The matrix is symmetric, so that each unordered pair of row blocks is visited once and serves the rows of both. Forward U/2;
// backward 3U/2, or U where the forward kept its tiles (similarity_tiles.h), 2 N^2 bytes in float32 and half a tile for each block.
#pragma once
#include <utility>

#include "cpu/similarity.h"

namespace fastssl::similarity {

// Logits that have a bias and are not bounded depend on the role of a row (s_ij + b_j or s_ij + b_i), and so does the gradient of a
// bias. In these cases the two roles are computed apart and the problem is not taken as a triangle.
template <class E>
bool triangular(const Problem<E>& p) {
  return p.symmetric && (p.bounded || p.y.bias.empty());
}

// The upper tiles that a forward keeps, one after the other, each in the room of the longest; none where data is null. The blocks
// are those of the forward: the backward may run on another number of threads.
template <class T>
struct KeptTriangle {
  T* data = nullptr;
  Blocks blocks = {};
  int64_t ld() const { return padded(blocks.longest()); }
  int64_t elements() const { return blocks.count * (blocks.count + 1) / 2 * blocks.longest() * ld(); }
  Cells<T> of(const Tile& t, int64_t I, int64_t J) const {  // I <= J
    if (!data) return {};
    return {data + (J * (J + 1) / 2 + I) * blocks.longest() * ld(), ld(), t.n};
  }
};

// Room for what the forward of a triangle of so many rows keeps, and for nothing where that is not worth its memory.
Tensor new_kept(int64_t rows, ScalarType dtype);
template <class T>
KeptTriangle<T> kept_in(const Tensor& kept, int64_t rows);

template <class E>
void forward_triangle(const Problem<E>& p, const State<Sum<E>>& state, Sum<E>* lse, const KeptTriangle<Sum<E>>& kept = {});
// dx += factor W x for both roles of a row; with `clear`, dx holds anything before.
template <class E>
void backward_triangle(const Problem<E>& p, const State<Sum<E>>& state, const Sum<E>* g, Sum<E> factor, bool clear, Sum<E>* dx,
                       const KeptTriangle<Sum<E>>& kept = {});

// Bytes that a forward keeps at most, and the most rows of float32 whose tiles fit in them. Keeping tiles was faster at all sizes
// that were measured, so the limit is what a loss that promises O(N D) memory may take beside that.
std::pair<int64_t, int64_t> most_kept();
void keep_at_most(int64_t bytes);  // for tests

}  // namespace fastssl::similarity
