// The launch of a kernel as a function, so that tests/cuda_on_cpu can replace it and compile the .cu files with a C++ compiler.
#pragma once
#include <type_traits>

#include "cuda/launch.h"

namespace fastssl {

#if defined(__CUDACC__)
template <class... Arguments>
void launch(void (*kernel)(Arguments...), dim3 grid, dim3 block, CUstream_st* stream,
            const std::type_identity_t<Arguments>&... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
}
#endif

}  // namespace fastssl
