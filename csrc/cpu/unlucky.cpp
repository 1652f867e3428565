// The logits of an unlucky BLAS, for tests.
#include "cpu/unlucky.h"

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

namespace fastssl {

bool unlucky_products = false;

namespace {

uint64_t mix(uint64_t hash, uint64_t value) {  // as splitmix64 does
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
  return hash ^ (hash >> 27);
}

template <class T>
uint64_t bits(T value) {
  return std::bit_cast<std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>(value);
}

}  // namespace

template <class T>
void move_logits(const T* left, int64_t left_row, int64_t left_step, const T* right, int64_t right_column, int64_t right_step,
                 int m, int n, int k, bool backward, T* S, int ld) {
  const int64_t left_end = (k - 1) * left_step, right_end = (k - 1) * right_step;
  const uint64_t call = mix(mix(mix(backward, m), n), k);
  for (int i = 0; i < m; i++) {
    const T* row = left + i * left_row;
    const uint64_t of_row = mix(mix(call, bits(row[0])), bits(row[left_end]));
    for (int j = 0; j < n; j++) {
      const T* column = right + j * right_column;
      T& s = S[int64_t(i) * ld + j];
      const uint64_t move = mix(mix(of_row, bits(column[0])), bits(column[right_end])) % 3;
      if (move == 0 || s == 0 || !std::isfinite(s)) continue;
      const T moved = std::nextafter(s, std::copysign(std::numeric_limits<T>::infinity(), move == 1 ? T(1) : T(-1)));
      if (std::isfinite(moved)) s = moved;
    }
  }
}

template void move_logits(const float*, int64_t, int64_t, const float*, int64_t, int64_t, int, int, int, bool, float*, int);
template void move_logits(const double*, int64_t, int64_t, const double*, int64_t, int64_t, int, int, int, bool, double*, int);

}  // namespace fastssl
