// The table of a call from arrays of ctypes.
#pragma once
#include <vector>

#include "common/records.h"

// Lists of tensors: data[l * tensors + t] and dtype[l * tensors + t] are those of list l at position t.
struct Lists {
  int lists, tensors;
  void** data;
  const int* dtype;
  const int64_t* count;

  std::vector<fastssl::TensorRecord> records() const {
    std::vector<fastssl::TensorRecord> all(tensors);
    for (int t = 0; t < tensors; t++) {
      all[t] = {};
      for (fastssl::Dtype& each : all[t].dtype) each = fastssl::kNothing;
      all[t].count = count[t];
      for (int l = 0; l < lists; l++) {
        all[t].data[l] = data[l * tensors + t];
        all[t].dtype[l] = fastssl::Dtype(dtype[l * tensors + t]);
      }
    }
    return all;
  }
};
