// Large tensors in the memory of pages.h.
#include "cpu/new_tensor.h"

#include <atomic>
#include <numeric>

#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace fastssl {
namespace {

std::atomic<MakeLarge> make_large{nullptr};

void give_back(void*, void* context) {
  const auto* block = static_cast<pages::Block*>(context);
  pages::keep(*block);
  delete block;
}

int64_t elements_of(IntArrayRef shape) { return std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<>()); }

}  // namespace

void set_make_large(MakeLarge make) { make_large = make; }

Tensor new_tensor(IntArrayRef shape, ScalarType dtype) {
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const size_t bytes = size_t(elements_of(shape)) * aoti_torch_dtype_element_size(type);
  if (bytes < pages::kPage) return empty(shape, dtype);
  if (const MakeLarge make = make_large) return Tensor(make(shape.data(), shape.size(), dtype));
  const pages::Block block = pages::take(bytes);
  if (!block.data) return empty(shape, dtype);  // whose error names the number of bytes
  AtenTensorHandle made;
  FASTSSL_TORCH(torch_from_blob(block.data, int64_t(shape.size()), shape.data(), contiguous_strides(shape).data(), 0, type,
                                aoti_torch_device_type_cpu(), -1, &made, aoti_torch_layout_strided(), nullptr, 0, give_back,
                                new pages::Block(block)));
  return Tensor(made);
}

Tensor zeros(IntArrayRef shape, ScalarType dtype) {
  const Tensor made = empty(shape, dtype);
  std::optional<Alone> alone;
  if (lost_its_team()) alone.emplace();
  FASTSSL_TORCH(aoti_torch_zero_(made.get()));
  return made;
}

}  // namespace fastssl
