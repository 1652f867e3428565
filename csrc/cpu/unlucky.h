// For tests: the logits of an unlucky BLAS. Off by default, and then one branch a tile.
#pragma once
#include <cstdint>

#include "cpu/products.h"

namespace fastssl {

extern bool unlucky_products;

// Moves each s_ij of S (m, n) by up to one unit in the last place, by a hash of row i of the left operand, of column j of the right
// one, in that order, of the sizes and of `backward`: so s_ij and s_ji differ, as do the s_ij of forward and backward and of tiles
// of different shapes, but the same call gives the same bits. Row i has its ends at left + i left_row and (k - 1) left_step
// further; column j likewise.
template <class T>
void move_logits(const T* left, int64_t left_row, int64_t left_step, const T* right, int64_t right_column, int64_t right_step,
                 int m, int n, int k, bool backward, T* S, int ld);

// The same with a right operand (k, n) that is packed into panels.
template <class E>
void move_logits(const Left<E>& left, const E* packed, int panel, int m, int n, int k, bool backward, Sum<E>* S, int ld);

}  // namespace fastssl
