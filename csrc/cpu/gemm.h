// Row-major matrix products on tiles, by the BLAS that torch carries.
//   C (m, n) = alpha op(A) op(B) + beta C
// torch's x86 wheels export the Fortran entry points; where they are missing the product goes through at::addmm_out, which
// costs a few microseconds more a tile. Inside a parallel region the BLAS runs on the calling thread.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>

extern "C" {
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*, const float*,
            const int*, const float*, float*, const int*) __attribute__((weak));
void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*, const int*, const double*,
            const int*, const double*, double*, const int*) __attribute__((weak));
int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
}

namespace fastssl {

// While it lives, products of this thread run on this thread alone. MKL would do so anyway inside a parallel region, but it
// splits a product, and so its rounding, by the number of threads it believes it has: torch.set_num_threads changes that.
class SerialProducts {
 public:
  SerialProducts() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~SerialProducts() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  SerialProducts(const SerialProducts&) = delete;

 private:
  int before_;
};

enum class Op { kPlain, kTransposed };

inline auto blas_gemm(float) { return &sgemm_; }
inline auto blas_gemm(double) { return &dgemm_; }

// A is (m, k) plain or (k, m) transposed, B (k, n) or (n, k); lda, ldb, ldc are row strides in elements.
template <class T>
void gemm(Op op_a, Op op_b, int m, int n, int k, T alpha, const T* a, int lda, const T* b, int ldb, T beta, T* c, int ldc) {
  const bool ta = op_a == Op::kTransposed, tb = op_b == Op::kTransposed;
  if (auto blas = blas_gemm(T())) {  // column-major BLAS sees C^T = op(B)^T op(A)^T
    blas(tb ? "T" : "N", ta ? "T" : "N", &n, &m, &k, &alpha, b, &ldb, a, &lda, &beta, c, &ldc);
    return;
  }
  constexpr auto dtype = std::is_same_v<T, float> ? at::kFloat : at::kDouble;
  auto matrix = [](const T* p, int64_t rows, int64_t cols, int64_t ld, bool transposed) {
    auto stored = at::from_blob(const_cast<T*>(p), transposed ? at::IntArrayRef{cols, rows} : at::IntArrayRef{rows, cols},
                                at::IntArrayRef{ld, 1}, dtype);
    return transposed ? stored.t() : stored;
  };
  auto out = matrix(c, m, n, ldc, false);
  at::cpu::addmm_out(out, out, matrix(a, m, k, lda, ta), matrix(b, k, n, ldb, tb), beta, alpha);
}

}  // namespace fastssl
