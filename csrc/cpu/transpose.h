// Transposes small blocks of elements in registers of 16 bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace fastssl {

// 16 bytes of elements, and the lower and upper halves of two of them in turn.
template <class T>
struct Line {
  static constexpr int W = 16 / sizeof(T);
  using U = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  typedef U V __attribute__((vector_size(16), aligned(1), may_alias));

  template <int Half, size_t... I>
  static inline __attribute__((always_inline)) V in_turn(V a, V b, std::index_sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I / 2 + I % 2 * W + Half * W / 2)...);
#else
    return __builtin_shuffle(a, b, V{U(I / 2 + I % 2 * W + Half * W / 2)...});
#endif
  }
};

// Transposes W x W elements: W rows of W neighbouring elements, `row` bytes apart, become W neighbouring columns of W rows, which
// are `to_row` elements apart.
template <class T>
inline __attribute__((always_inline)) void transpose(const T* from, int64_t row, T* to, int64_t to_row) {
  using L = Line<T>;
  using V = typename L::V;
  constexpr int W = L::W;
  V v[W], w[W];
  for (int k = 0; k < W; k++) v[k] = *reinterpret_cast<const V*>(reinterpret_cast<const char*>(from) + k * row);
  for (int step = 1; step < W; step *= 2) {
    for (int i = 0; i < W / 2; i++) {
      w[2 * i] = L::template in_turn<0>(v[i], v[i + W / 2], std::make_index_sequence<W>());
      w[2 * i + 1] = L::template in_turn<1>(v[i], v[i + W / 2], std::make_index_sequence<W>());
    }
    for (int i = 0; i < W; i++) v[i] = w[i];
  }
  for (int d = 0; d < W; d++) *reinterpret_cast<V*>(to + d * to_row) = v[d];
}

}  // namespace fastssl
