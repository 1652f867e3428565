// A whole step of NT-Xent on the CPU for rows that are normalised here: the forward in one call and the backward in another, since
// at small batches what lies between the operations takes as long as they do.                          a, b (B, D), N = 2B rows
//   z = [a/|a| ; b/|b|]     u_i = log sum_{j not in {i, p(i)}} exp(scale <z_i, z_j>) - scale <z_i, z_p(i)>
//   loss = w sum_i softplus(u_i), w = 1 / N for a mean, otherwise 1
//   g_i = dloss w sigmoid(u_i),  G_i = dz_i - scale (g_i + g_p(i)) z_p(i),  da_i = (G_i - z_i <z_i, G_i>) / |a_i|
// with dz of similarity.cpp. U = 2 N^2 D FLOP: forward U/2, backward 3U/2, or U where tiles are kept. Beside them 2ND elements are
// read and written each way.
// Of rows in 16 bits, z is bfloat16 where the CPU multiplies that (has_bfloat16_products()) and they are bfloat16, otherwise
// float32. All that follows from z is float32, also G, in which dz and the positive's term cancel; da is rounded at the end.
#pragma once
#include <utility>

#include "cpu/tensor.h"

namespace fastssl::pair_step {

// What the forward leaves to the backward beside the loss: z (2B, D); numbers (9, B), the norm, maximum, sum and lse of each row
// and the similarity of each pair; the place of each row's maximum, peak (2B,) int32; and kept tiles (similarity_triangle.h).
struct Forward {
  Tensor loss, z, numbers, peak, kept;
};

// a and b (B, D). Tiles are kept only if `keep`.
Forward forward(const Tensor& a, const Tensor& b, double scale, bool mean, bool keep);
// The gradients of a and b, in their dtype.
std::pair<Tensor, Tensor> backward(const Tensor& dloss, const Forward& left, double scale, bool mean, ScalarType dtype);

}  // namespace fastssl::pair_step
