// Large tensors of the kernels' library get here what its own interface to torch cannot give them: torch may resize them, and its
// profiler hears of their memory.
#include "python/kernels.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <stdexcept>
#include <utility>

#include "python/list_ops.h"

namespace fastssl {
namespace {

const Interface* table = nullptr;

void report(char* data, int64_t bytes) {
  if (c10::memoryProfilingEnabled()) c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(c10::kCPU));
}

void give_back(void* context) {
  const auto* block = static_cast<pages::Block*>(context);
  report(block->data, -int64_t(block->bytes));
  kernels().keep_pages(*block);
  delete block;
}

struct LargePages final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    const pages::Block block = n < pages::kPage ? pages::Block{} : kernels().take_pages(n);
    if (!block.data) return c10::GetCPUAllocator()->allocate(n);  // whose error names the number of bytes
    report(block.data, int64_t(block.bytes));
    return {block.data, new pages::Block(block), give_back, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};

AtenTensorHandle make_large(const int64_t* sizes, size_t dims, c10::ScalarType dtype) {
  static LargePages* large_pages = new LargePages;  // never gone, since tensors may outlive everything else
  const at::IntArrayRef shape(sizes, dims);
  at::Tensor made = at::detail::empty_generic(shape, large_pages, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
  return reinterpret_cast<AtenTensorHandle>(new at::Tensor(std::move(made)));
}

}  // namespace

void attach(uintptr_t address) {
  const auto* given = reinterpret_cast<const Interface*>(address);
  if (given->version != Interface::kVersion) throw std::runtime_error("fastssl/_cpu.so is that of another version of fastssl");
  table = given;
  table->set_make_large(make_large);
  register_list_ops();
}

const Interface& kernels() { return *table; }

at::Tensor taken(AtenTensorHandle handle) {
  at::Tensor tensor = std::move(*reinterpret_cast<at::Tensor*>(handle));
  aoti_torch_delete_tensor_object(handle);
  return tensor;
}

}  // namespace fastssl
