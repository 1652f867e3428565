// New tensors of ops whose time is that of their memory.
#pragma once
#include "cpu/tensor.h"

namespace fastssl {

// As empty. Large tensors lie in large pages, and the memory of those that are gone is taken again: the first touch of 38 MB takes
// 11 ms on 2 cores in pages of 4 KB and 3 ms in large ones, where what is written there takes 1 ms.
Tensor new_tensor(IntArrayRef shape, ScalarType dtype);

// Such a tensor of zeros, which are written in parallel.
Tensor zeros(IntArrayRef shape, ScalarType dtype);

// Makes large tensors in place of new_tensor: a function of torch's full interface can let torch resize them and tell its profiler
// of them. Null where there is none.
using MakeLarge = AtenTensorHandle (*)(const int64_t* sizes, size_t dims, ScalarType dtype);
void set_make_large(MakeLarge make);

}  // namespace fastssl
