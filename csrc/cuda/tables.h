// Tables of tensors on the device: built where a list comes for the first time, found again by comparing its records afterwards.
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

// The device of a tensor, current while this lives, and torch's stream on it.
struct DeviceOf {
  explicit DeviceOf(const Tensor& tensor);
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

// `tensor`, float32 or float64 of one element, instead of `number` where given.
Scalar scalar_of(double number, const std::optional<Tensor>& tensor);

// Puts list `l` of the call into the records; an empty list is kNothing everywhere.
void add_list(std::vector<TensorRecord>& records, int l, const std::vector<Tensor>& list);
// Records of as many tensors, with every list at kNothing.
std::vector<TensorRecord> new_records(const std::vector<Tensor>& first);

struct Entry;

// A table in use on a stream. Until the destructor has told the stream so, no other call may overwrite it.
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
