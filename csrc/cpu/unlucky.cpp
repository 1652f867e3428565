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
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  return std::bit_cast<Bits>(value);
}

// s moved by -1, 0 or 1 units in the last place.
template <class T>
T moved(T s, uint64_t hash) {
  const uint64_t move = hash % 3;
  if (move == 0 || s == 0 || !std::isfinite(s)) return s;
  const T next = std::nextafter(s, std::copysign(std::numeric_limits<T>::infinity(), move == 1 ? T(1) : T(-1)));
  return std::isfinite(next) ? next : s;
}

}  // namespace

template <class E>
void move_logits(const Left<E>& left, const E* packed, int panel, int m, int n, int k, bool backward, Sum<E>* S, int ld) {
  constexpr int terms = kTerms<E>;
  const int64_t steps = (k + terms - 1) / terms, line = int64_t(terms) * panel;
  const uint64_t call = mix(mix(mix(backward, m), n), k);
  for (int i = 0; i < m; i++) {
    const E* row = left.from(i).data;
    const uint64_t of_row = mix(mix(call, bits(row[0])), bits(row[(steps - 1) * left.step]));
    for (int j = 0; j < n; j++) {
      const E* column = packed + j / panel * steps * line + j % panel * terms;
      Sum<E>& s = S[int64_t(i) * ld + j];
      s = moved(s, mix(mix(of_row, bits(column[0])), bits(column[(steps - 1) * line])));
    }
  }
}

template void move_logits(const Left<float>&, const float*, int, int, int, int, bool, float*, int);
template void move_logits(const Left<double>&, const double*, int, int, int, int, bool, double*, int);
template void move_logits(const Left<BFloat16>&, const BFloat16*, int, int, int, int, bool, float*, int);

}  // namespace fastssl
