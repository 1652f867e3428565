// What the ops (.cpp, with torch's headers) hand to the kernels (.cu, without them: nvcc parses a .cu once for each architecture).
#pragma once
#include "common/records.h"

struct CUstream_st;

namespace fastssl {

// A number of the call, or a place on the device that the kernel reads when it runs, so that a captured graph reads it anew.
struct Scalar {
  double number;
  const void* device;  // float32, or float64 where is_double; null: `number` is the value
  bool is_double;
};

// One block for each chunk of the table.
struct Launch {
  TableView table;
  unsigned chunks;
  CUstream_st* stream;
};

}  // namespace fastssl
