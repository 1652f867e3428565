// Products of rows by the BLAS that torch carries. torch's x86 wheels export its Fortran entry points; where they are missing, the
// products are our own. Inside a parallel region the BLAS runs on the calling thread.
#pragma once
#include <vector>

#include "cpu/products.h"

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

inline auto blas_gemm(float) { return &sgemm_; }
inline auto blas_gemm(double) { return &dgemm_; }

// C (m, n) = A (m, k) B (n, k)^T, all of them dense.
template <class T>
void row_products(const T* a, int m, const T* b, int n, int k, T* c) {
  if (auto blas = blas_gemm(T())) {  // column-major BLAS sees C^T = B A^T
    const T one = 1, zero = 0;
    return blas("T", "N", &n, &m, &k, &one, b, &k, a, &k, &zero, c, &n);
  }
  const Products<T>& own = products<T>();
  std::vector<T> packed(own.size(k, n));
  own.pack({{const_cast<T*>(b), sizeof(T) == 8 ? kFloat64 : kFloat32}, 0, 1, k}, k, n, packed.data());
  own.multiply({a, k, 1}, packed.data(), m, n, k, 1.0, false, c, n);
}

}  // namespace fastssl
