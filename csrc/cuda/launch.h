// What the ops (C++, torch) hand to the kernels (CUDA, no torch: a kernel's file is parsed once for each architecture).
#pragma once
#include "common/records.h"

struct CUstream_st;

namespace fastssl {

// A number of the call, or its value on the device at the time the kernel runs, so that a captured graph reads it anew.
struct Scalar {
  double number;
  const void* device;  // float32, or float64 where is_double; null: the number counts
  bool is_double;
};

// One block for each chunk of the table.
struct Launch {
  TableView table;
  unsigned chunks;
  CUstream_st* stream;
};

}  // namespace fastssl
