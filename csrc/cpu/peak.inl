// The multiply-adds of float32 for one instruction set, see peak.h.
#include "cpu/lanes.h"
#include "cpu/peak_loops.inl"

struct Floats : FloatLane {
  using Word = float;
#if defined(__aarch64__) || FASTSSL_WIDTH == 16
  static constexpr int kRows = 12;  // of 32 registers
#else
  static constexpr int kRows = FASTSSL_WIDTH == 8 ? 6 : 4;  // of 16; SSE2 needs another one for each product
#endif
  static constexpr int kWords = W, kFlops = 2 * W;
  static V filled(float x) { return all(x); }
  static V each(float x) { return all(x); }
  static V again(V sum, V a, V b) { return sum * a + b; }  // a sum + a b would let the compiler make a b once
  static V add(V sum, V a, V b) { return sum + a * b; }
};
