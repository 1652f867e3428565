// Products of tiles by code of our own.                                   C (m, n) = scale A B  or  C += scale A B,   2 m n k FLOP
//   A (m, k) is read in place, at any distance of its rows and of its terms. B (k, n) is packed into panels of `panel` columns.
//
// A block of rows and one panel of columns stay in registers while k runs, so that each c_ij is one chain of k multiply-adds from
// the first term to the last. Its bits depend on row i of A and column j of B alone: not on the tile, the thread or the machine's
// BLAS, and <x, y> has the bits of <y, x>. Instruction sets with fused multiply-adds agree with each other. The scale is taken as
// the sum of two numbers of type T, so that its own rounding, which all logits would share, is none; but for bfloat16 it is one.
//
// bfloat16 operands are taken in pairs of terms, which a CPU with AVX512_BF16 multiplies and adds in float32 in one instruction, at
// twice the rate of float32. `step` is then the distance from one pair to the next, and the two terms of a pair are neighbours.
// Where k is odd, the missing term is a zero. A CPU with AMX multiplies whole tiles of bfloat16; oneDNN does that for us.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cpu/arrays.h"

namespace fastssl {

// The type that the products of elements E are summed in.
template <class E>
using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;

// Terms that one instruction takes together.
template <class E>
constexpr int kTerms = std::is_same_v<E, BFloat16> ? 2 : 1;

// A left operand: row i, term (or pair of terms) p is at data + i row + p step.
template <class E>
struct Left {
  const E* data;
  int64_t row, step;
  Left from(int64_t i) const { return {data + i * row, row, step}; }
};

// A right operand B before it is packed: b_pj is element first + p step + j column of an array.
struct Right {
  Array array;
  int64_t first, step, column;
};

template <class E>
struct Products {
  using T = Sum<E>;
  int panel;  // columns
  void (*multiply)(const Left<E>& a, const E* packed, int m, int n, int k, double scale, bool add, T* C, int64_t ld);
  // An array of float32 or of 16 bits is packed as float or, where it holds bfloat16, as such; one of float64 as double.
  void (*pack)(const Right& b, int k, int n, E* packed);
  // Rounds weights S (m, n) to bfloat16 as left operands: `rows` holds W, and `columns` W^T, either as pairs of rows of W, in which
  // the terms of each two rows are neighbours, or, with `across`, as rows of its own. n is a multiple of 16, and m at most 16. Both
  // have ld elements from one row to the next; one that is null is not written. Null for other elements, which need no such copy.
  void (*round_weights)(const float* S, int S_ld, int m, int n, E* rows, E* columns, int64_t ld);
  bool across;

  // Elements of a packed operand (k, n).
  int64_t size(int64_t k, int64_t n) const {
    const int64_t terms = (k + kTerms<E> - 1) / kTerms<E> * kTerms<E>;
    return terms * ((n + panel - 1) / panel * panel);
  }
};

template <class E>
const Products<E>& products();  // of the instruction set in use; those of bfloat16 only where has_bfloat16_products()

bool has_bfloat16_products();

// Products of bfloat16 by oneDNN (products_brgemm.cpp), for CPUs with matrix units (AMX). It wants left operands as rows.
extern const Products<BFloat16>* brgemm_products;  // null where that file is left out, or torch has none
bool uses_brgemm();
void use_brgemm(bool on);                     // at first where the CPU has matrix units; for tests, anywhere
const Products<BFloat16>& products_across();  // our own, with left operands as brgemm wants them

}  // namespace fastssl
