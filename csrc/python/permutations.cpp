// The quick check of ops/restore_tokens.py, which finds the wrong row where it says no.
#include "python/permutations.h"

#include <torch/csrc/autograd/python_variable.h>

#include <vector>

namespace fastssl {

bool are_permutations(const pybind11::handle& given) {
  if (!THPVariable_CheckExact(given.ptr())) return false;
  const at::Tensor& ids = THPVariable_Unpack(given.ptr());
  if (!ids.device().is_cpu() || ids.layout() != at::kStrided || ids.is_nested() || ids.is_neg()) return false;
  if (ids.scalar_type() != at::kLong || ids.dim() != 2) return false;
  const int64_t *id = ids.const_data_ptr<int64_t>(), rows = ids.size(0), length = ids.size(1);
  const int64_t row_stride = ids.stride(0), stride = ids.stride(1);
  std::vector<int64_t> seen(length, -1);  // the last row that had this id
  for (int64_t n = 0; n < rows; n++)
    for (int64_t l = 0; l < length; l++) {
      const uint64_t i = uint64_t(id[n * row_stride + l * stride]);
      if (i >= uint64_t(length) || seen[i] == n) return false;
      seen[i] = n;
    }
  return true;
}

}  // namespace fastssl
