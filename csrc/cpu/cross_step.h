// A whole step of CLIP, and of InfoNCE within a batch, on the CPU, the forward in one call and the backward in another. a, b (N, D)
//   x, y = a, b, at unit length if `normalize`     s_ij = scale factor <x_i, y_j>, factor a tensor or 1
//   u_i = log sum_{j != i} exp(s_ij) - s_ii,  v_j = log sum_{i != j} exp(s_ij) - s_jj
//   loss = w sum_i softplus(u_i)                     of one direction, w = 1 / N for a mean, otherwise 1
//   loss = w sum_i (softplus(u_i) + softplus(v_i))   of both directions, w = 1 / 2N or 1 / 2
//   g_i = dloss w sigmoid(u_i), h_i = dloss w sigmoid(v_i), 0 for one direction, e = g + h
//   dx_i = (that of similarity_cross with g and h) - scale factor e_i y_i, dy as well, dfactor = scale (that - sum_i e_i <x_i,
//   y_i>)
// U = 2 N^2 D FLOP: forward U, backward 2U of the rows whose entries were kept, 3U of others. The operation is
// similarity_cross, which one direction takes too: without column sums it would be no cheaper by more than the kept entries save.
// Rows of 16 bits are treated as in pair_step.h; rows that are not normalised are x and y, widened where z would be float32.
#pragma once
#include <array>
#include <optional>

#include "cpu/tensor.h"

namespace fastssl::cross_step {

struct How {
  double scale;
  bool mean, normalize, both;  // directions
};

// What the forward leaves to the backward beside the loss: x and y (N, D); numbers (5, N): the norms of a and b, where rows were
// normalised, the lse of rows and columns, and <x_i, y_i>; and what similarity_cross leaves.
struct Forward {
  Tensor loss, x, y, numbers, state, peak, kept;
};

// a and b (N, D). Entries are kept only if `keep`.
Forward forward(const Tensor& a, const Tensor& b, const std::optional<Tensor>& factor, const How& how, bool keep);
// The gradients of a and b, in their dtype, and of the factor. Undefined are those that are not wanted.
std::array<Tensor, 3> backward(const Tensor& dloss, const Forward& left, const std::optional<Tensor>& factor, const How& how,
                               const std::vector<bool>& wanted, ScalarType dtype);

}  // namespace fastssl::cross_step
