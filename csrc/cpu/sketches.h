// Element functions of random directions and of what is seen along them: waves of projections, their sums, sorted projections, and
// normal numbers. Tiles (m, n) of projections are row-major with leading dimension ld; ld is a multiple of `width`, and so is n
// where nothing else is said.
#pragma once
#include <cstdint>

namespace fastssl {

// The largest number of rows of a tile of `add_waves` and `slope`, and the floats that they want to work in for each lane.
constexpr int kWaveRows = 64;

template <class T>
struct Sketches {
  int width;  // lanes

  // sums[0][k][j] += sum_i cos((k + 1) step x_ij), sums[1][k][j] += sum_i sin(...), k < knots; `sums` (2, knots, ld), m <=
  // kWaveRows
  void (*add_waves)(const T* x, int ld, int m, int n, double step, int knots, double* sums);
  // x_ij <- sum_k b_kj cos((k + 1) step x_ij) - a_kj sin((k + 1) step x_ij), with factors (2, knots, ld): b, then a
  void (*slope)(T* x, int ld, int m, int n, double step, int knots, const T* factors);
  // Sorts each of the n columns of x (m, ld). With q the m quantiles it returns sum_ij (x_(i)j - q_i)^2 and, if `slopes`, writes
  // x_ij <- factor (x_ij - q of its rank). `keys` and `places` have room for m rows of `width`.
  double (*match)(T* x, int ld, int m, int n, const T* q, T factor, bool slopes, T* keys, int32_t* places);
  // g (4, n), ld: standard normal numbers of 4 rows, counter (block, first + j, stream, 0); squares_j += g_ij^2 of the first `rows`
  void (*normal)(uint32_t block, uint32_t first, uint32_t stream, uint64_t seed, int rows, int n, int ld, T* g, T* squares);
};

template <class T>
const Sketches<T>& sketches();  // of the instruction set in use

}  // namespace fastssl
