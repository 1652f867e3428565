// A whole step of SupCon on the CPU, the forward in one call and the backward in another.  features (B, V, D), N = V B rows
//   z = features, view after view, at unit length if `normalize`       s_ij = scale <z_i, z_j>
//   P_i = (sum of z over the class of i) - z_i, n_i rows              u_i = lse_i - scale <z_i, P_i> / n_i
//   loss = w sum_i of l(u_i) where n_i > 0, w = 1 / N for a mean, otherwise 1
//   l(u) = u and lse_i = log sum_{j != i} exp(s_ij), except that of a row with one positive, which has one of at most two views,
//   lse_i leaves the positive out and l is softplus
//   g_i = dloss w l'(u_i),  G_i = dz_i - (2 / rows of the class) (sum of scale g / n over the class) P_i
// with dz of similarity.cpp. U = 2 N^2 D FLOP: forward U/2, backward 3U/2, or U where tiles are kept. The sums over classes take
// O(N D), in float64: after a huge row was subtracted, the sum is what it would have been without that row. Rows of 16 bits are
// treated as in pair_step.h.
#pragma once
#include "cpu/tensor.h"

namespace fastssl::sup_con_step {

// What the forward leaves to the backward beside the loss: z (V B, D); numbers (5, V B), the norm, maximum, sum, lse and mean
// similarity of the positives of each row; the places of the maxima, peak (V B,) int32; classes (2, B) int32, the samples in the
// order of their classes and the class of each; and kept tiles (similarity_triangle.h).
struct Forward {
  Tensor loss, z, numbers, peak, classes, kept;
};

// features (B, V, D); labels (B,) are integers, or undefined where every sample is its own class. Tiles are
// kept only if `keep`.
Forward forward(const Tensor& features, const Tensor& labels, double scale, bool normalize, bool mean, bool keep);
// Whether the classes name each of the samples once. They are places in memory, which a hook that saves them in fewer bits moves.
bool each_sample_once(const Tensor& classes);
// The gradient of the features, in their dtype. The classes name each sample once.
Tensor backward(const Tensor& dloss, const Forward& left, double scale, bool normalize, bool mean, ScalarType dtype);

}  // namespace fastssl::sup_con_step
