// The tile products of csrc/cpu/products.h, compiled alone, against double, as elements.cpp does with the element functions. For
// each instruction set of the machine and each check it prints
//   set check error
// with the largest error in units of what the arithmetic may lose: k terms lose (k + 2) 2^-24 of the sum of the sizes of the terms.
#include "cpu/products.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"

namespace {

using c10::BFloat16;
using fastssl::Array;
using fastssl::kTerms;

class Worst {
 public:
  void see(double got, double want, double bound) {
    if (got == want) return;
    const double error = std::fabs(got - want) / bound;
    worst_ = std::isnan(error) || error > worst_ ? (std::isnan(error) ? HUGE_VAL : error) : worst_;
  }
  void print(const char* check) const { std::printf("%s %s %.3g\n", fastssl::isa::name(fastssl::isa::current()), check, worst_); }

 private:
  double worst_ = 0;
};

uint64_t state = 20;
float between(float low, float high) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return low + (high - low) * float(state >> 40) * 0x1p-24f;
}

// Numbers of a dtype, and the same as double.
struct Numbers {
  fastssl::Dtype dtype;
  std::vector<char> bytes;
  std::vector<double> values;
  Numbers(fastssl::Dtype dtype, int64_t count) : dtype(dtype), bytes(count * 8), values(count) {
    for (int64_t i = 0; i < count; i++) {
      const float x = between(-1, 1);
      if (dtype == fastssl::kFloat64) {
        values[i] = x + 0x1p-40 * between(-1, 1);
        std::memcpy(&bytes[i * 8], &values[i], 8);
      } else if (dtype == fastssl::kFloat32) {
        values[i] = x;
        std::memcpy(&bytes[i * 4], &x, 4);
      } else if (dtype == fastssl::kBFloat16) {
        const BFloat16 rounded(x);
        values[i] = float(rounded);
        std::memcpy(&bytes[i * 2], &rounded, 2);
      } else {  // float16: multiples of 2^-10, which are the bits of 1 + |x| less 1
        const uint16_t fraction = uint16_t(std::fabs(x) * 1023);
        const uint16_t bits = uint16_t(0x3C00u | fraction | (x < 0 ? 0x8000u : 0));
        values[i] = std::copysign(1 + fraction * 0x1p-10, x);
        std::memcpy(&bytes[i * 2], &bits, 2);
      }
    }
  }
  Array array() { return {bytes.data(), dtype}; }
};

struct Sizes {
  int m, n, k;
};
constexpr Sizes kSizes[] = {{1, 1, 1}, {2, 3, 2}, {7, 31, 5}, {8, 32, 16}, {13, 70, 33}, {17, 16, 130}, {40, 97, 64}};

// scale A B and C + scale A B, for B (k, n) with its columns, or its rows, dense in memory, or neither. A is dense along its terms,
// or, where its elements are single terms, along its rows.
template <class E>
void multiplied(fastssl::Dtype a_dtype, fastssl::Dtype b_dtype, Worst& worst) {
  using T = fastssl::Sum<E>;
  const auto& f = fastssl::products<E>();
  const double u = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24, scale = 1.0 / 0.07;
  for (const auto [m, n, k] : kSizes)
    for (int layout = 0; layout < 3; layout++)
      for (const bool add : {false, true}) {
        const bool across = kTerms<E> == 1 && layout == 1;
        const int64_t width = k + k % 2, a_row = across ? 1 : width, a_step = across ? m : kTerms<E>;
        Numbers a(a_dtype, width * m), b(b_dtype, 3 + 2 * k * (n + 2));
        if (k % 2 && kTerms<E> == 2)
          for (int i = 0; i < m; i++) std::memset(&a.bytes[(i * width + k) * 2], 0, 2);
        const int64_t step = layout == 0 ? 1 : layout == 1 ? n + 2 : 2, column = layout == 0 ? k + 1 : layout == 1 ? 1 : 2 * k;
        std::vector<E> packed(f.size(k, n), E(7));
        f.pack({b.array(), 3, step, column}, k, n, packed.data());
        const int64_t ld = n + 3;
        std::vector<T> C(m * ld, T(0.5));
        f.multiply({reinterpret_cast<const E*>(a.bytes.data()), a_row, a_step}, packed.data(), m, n, k, scale, add, C.data(), ld);
        for (int i = 0; i < m; i++)
          for (int j = 0; j < ld; j++) {
            double sum = 0, size = 0;
            for (int p = 0; p < k && j < n; p++) {
              const double term = a.values[i * a_row + p * (across ? m : 1)] * b.values[3 + p * step + j * column];
              sum += term, size += std::fabs(term);
            }
            const double want = j < n ? scale * sum + (add ? 0.5 : 0) : 0.5;  // what lies beside C is left alone
            worst.see(C[i * ld + j], want, j < n ? u * ((k + 2) * scale * size + (add ? 1 : 0)) : 0);
          }
      }
}

// <x, y> has the bits of <y, x>, wherever the two rows lie in their tiles.
template <class E>
void symmetric(fastssl::Dtype dtype, Worst& worst) {
  using T = fastssl::Sum<E>;
  const auto& f = fastssl::products<E>();
  constexpr int N = 53, D = 64;
  Numbers x(dtype, N * D);
  std::vector<E> packed(f.size(D, N));
  f.pack({x.array(), 0, 1, D}, D, N, packed.data());
  std::vector<T> S(N * N);
  const fastssl::Left<E> left{reinterpret_cast<const E*>(x.bytes.data()), D, kTerms<E>};
  f.multiply(left, packed.data(), N, N, D, 1 / 0.07, false, S.data(), N);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) worst.see(S[i * N + j], S[j * N + i], 0);
}

// Instruction sets with fused multiply-adds agree: each entry is the same chain of them, from the first term to the last.
void chained(Worst& worst) {
  const auto& f = fastssl::products<float>();
  constexpr int N = 37, D = 67;
  Numbers x(fastssl::kFloat32, N * D);
  std::vector<float> packed(f.size(D, N)), S(N * N);
  f.pack({x.array(), 0, 1, D}, D, N, packed.data());
  f.multiply({reinterpret_cast<const float*>(x.bytes.data()), D, 1}, packed.data(), N, N, D, 1, false, S.data(), N);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      float sum = 0;
      for (int d = 0; d < D; d++) sum = std::fmaf(float(x.values[i * D + d]), float(x.values[j * D + d]), sum);
      worst.see(S[i * N + j], sum, 0);
    }
}

// W and W^T as left operands after their rounding to bfloat16, in products with ones: the sums of rows and of columns.
void rounded(const fastssl::Products<BFloat16>& f, Worst& worst) {
  for (const int m : {1, 2, 15, 16}) {
    constexpr int n = 48, ld = 64;
    std::vector<float> S(m * ld), sums(std::max(m, n));
    for (float& s : S) s = between(0, 1);
    std::vector<BFloat16> rows((m + 1) * ld), columns((n + 1) * ld), ones(n, BFloat16(1.f)), packed(f.size(n, 1));
    f.round_weights(S.data(), ld, m, n, rows.data(), columns.data(), ld);
    std::vector<BFloat16> rows_alone(rows.size()), columns_alone(columns.size());
    f.round_weights(S.data(), ld, m, n, rows_alone.data(), nullptr, ld);
    f.round_weights(S.data(), ld, m, n, nullptr, columns_alone.data(), ld);
    worst.see(rows_alone == rows && columns_alone == columns, 1, 0);
    const auto rounded_to = [](float s) { return double(float(BFloat16(s))); };
    f.pack({{ones.data(), fastssl::kBFloat16}, 0, 1, n}, n, 1, packed.data());
    fastssl::products<BFloat16>().multiply({rows.data(), ld, 2}, packed.data(), m, 1, n, 1, false, sums.data(), 1);
    for (int i = 0; i < m; i++) {
      double want = 0;
      for (int j = 0; j < n; j++) want += rounded_to(S[i * ld + j]);
      worst.see(sums[i], want, n * 0x1p-24 * want);
    }
    f.pack({{ones.data(), fastssl::kBFloat16}, 0, 1, m}, m, 1, packed.data());
    const fastssl::Left<BFloat16> transposed = {columns.data(), f.across ? ld : 2, f.across ? 2 : 2 * ld};
    fastssl::products<BFloat16>().multiply(transposed, packed.data(), n, 1, m, 1, false, sums.data(), 1);
    for (int j = 0; j < n; j++) {
      double want = 0;
      for (int i = 0; i < m; i++) want += rounded_to(S[i * ld + j]);
      worst.see(sums[j], want, m * 0x1p-24 * want);
    }
  }
}

}  // namespace

int main() {
  for (const std::string& set : fastssl::isa::available()) {
    fastssl::isa::use(set);
    Worst single, symmetry, doubles, pairs, weights, chains;
    for (const auto dtype : {fastssl::kFloat32, fastssl::kBFloat16, fastssl::kFloat16})
      multiplied<float>(fastssl::kFloat32, dtype, single);
    multiplied<double>(fastssl::kFloat64, fastssl::kFloat64, doubles);
    if (set != "sse2") chained(chains);  // it has no fused multiply-add
    symmetric<float>(fastssl::kFloat32, symmetry), symmetric<double>(fastssl::kFloat64, symmetry);
    if (fastssl::has_bfloat16_products()) {
      multiplied<BFloat16>(fastssl::kBFloat16, fastssl::kBFloat16, pairs);
      symmetric<BFloat16>(fastssl::kBFloat16, symmetry);
      rounded(fastssl::products<BFloat16>(), weights), rounded(fastssl::products_across(), weights);
    }
    single.print("float"), doubles.print("double"), pairs.print("bfloat16"), symmetry.print("symmetric"), weights.print("rounded"),
        chains.print("chained");
  }
  return 0;
}
