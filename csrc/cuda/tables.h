// Tables of tensors on the device. A table is built when its lists come for the first time; afterwards it is found by comparing
// records.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cuda/launch.h"

namespace fastssl {

using torch::stable::Tensor;

void check(cudaError_t status, const char* what);

Dtype dtype_of(const Tensor& tensor);

// Makes the device of a tensor the current one while this object lives, and knows torch's stream on it.
struct DeviceOf {
  explicit DeviceOf(const Tensor& tensor);
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

// `number`, or `tensor` in its place where one is given: float32 or float64, one element.
Scalar scalar_of(double number, const std::optional<Tensor>& tensor);

// Puts list `l` of the call into the records; an empty list stays kNothing everywhere.
void add_list(std::vector<TensorRecord>& records, int l, const std::vector<Tensor>& list);
// A record for each tensor of the first list, with every list at kNothing.
std::vector<TensorRecord> new_records(const std::vector<Tensor>& first);

struct Entry;

// A table that a call uses on a stream. No other call may overwrite the table before the destructor has noted the end of its use.
class Table {
 public:
  Table(const std::vector<TensorRecord>& records, const DeviceOf& on);
  ~Table();
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  Launch launch() const;

 private:
  Entry* entry_;
  cudaStream_t stream_;
};

}  // namespace fastssl
