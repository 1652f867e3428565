// For tests: the logits of an unlucky BLAS. Off by default, and then one branch a tile.
#pragma once
#include <cstdint>

#include "cpu/products.h"

namespace fastssl {

extern bool unlucky_products;

// Moves each s_ij of S (m, n) by up to one unit in the last place, by a hash of row i of the left operand (m, k), of column j of
// the right one (k, n), which is packed into panels, in that order, of the sizes and of `backward`: so s_ij and s_ji differ, as do
// the s_ij of forward and backward and of tiles of different shapes, but the same call gives the same bits.
template <class E>
void move_logits(const Left<E>& left, const E* packed, int panel, int m, int n, int k, bool backward, Sum<E>* S, int ld);

}  // namespace fastssl
