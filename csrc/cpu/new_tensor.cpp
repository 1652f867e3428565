// Keeps the memory of large tensors that are gone for the next ones, which then touch no new pages. The kernel may take what is
// kept whenever it is short of memory (MADV_FREE), and what it took comes back as new pages.
#include "cpu/new_tensor.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>

namespace fastssl {
#ifdef __linux__
namespace {

constexpr size_t kPage = 1 << 21;        // a large page; smaller tensors are torch's
constexpr size_t kMostKept = 256 << 20;  // bytes in all
constexpr int kMostBlocks = 8;

struct Block {
  char* data = nullptr;
  size_t bytes = 0;  // whole pages
};

// Blocks without a tensor, the oldest first. A child of fork may find the flag set for ever, and keeps nothing then.
Block kept[kMostBlocks];
int blocks = 0;
size_t kept_bytes = 0;
std::atomic_flag busy = ATOMIC_FLAG_INIT;

void unmap(Block block) { munmap(block.data, block.bytes); }

Block take_out(int i) {
  const Block block = kept[i];
  for (; i + 1 < blocks; i++) kept[i] = kept[i + 1];
  blocks--, kept_bytes -= block.bytes;
  return block;
}

// A kept block of at least so many bytes, and not many more; else none.
Block take_kept(size_t bytes) {
  Block found;
  if (busy.test_and_set(std::memory_order_acquire)) return found;
  for (int i = blocks - 1; i >= 0 && !found.data; i--)
    if (kept[i].bytes >= bytes && kept[i].bytes <= bytes + bytes / 8) found = take_out(i);
  busy.clear(std::memory_order_release);
  return found;
}

void keep(Block block) {
  if (block.bytes > kMostKept || madvise(block.data, block.bytes, MADV_FREE) != 0 || busy.test_and_set(std::memory_order_acquire))
    return unmap(block);
  while (blocks == kMostBlocks || kept_bytes + block.bytes > kMostKept) unmap(take_out(0));
  kept[blocks++] = block, kept_bytes += block.bytes;
  busy.clear(std::memory_order_release);
}

// New memory at the start of a large page. Without an address where there is none.
Block map(size_t bytes) {
  void* all = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return {};
  char* data = static_cast<char*>(all);
  const size_t before = (kPage - uintptr_t(data) % kPage) % kPage;
  if (before) munmap(data, before);
  munmap(data + before + bytes, kPage - before);
  madvise(data + before, bytes, MADV_HUGEPAGE);
  return {data + before, bytes};
}

void report(char* data, int64_t bytes) {
  if (c10::memoryProfilingEnabled()) c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(c10::kCPU));
}

void give_back(void* context) {
  const Block* block = static_cast<Block*>(context);
  report(block->data, -int64_t(block->bytes));
  keep(*block);
  delete block;
}

struct LargePages final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (n < kPage) return c10::GetCPUAllocator()->allocate(n);
    const size_t bytes = (n + kPage - 1) / kPage * kPage;
    Block block = take_kept(bytes);
    if (!block.data) block = map(bytes);
    if (!block.data) return c10::GetCPUAllocator()->allocate(n);  // whose error names the number of bytes
    report(block.data, int64_t(block.bytes));
    return {block.data, new Block(block), give_back, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};

}  // namespace

at::Tensor new_tensor(at::IntArrayRef shape, const at::TensorOptions& options) {
  static LargePages* large_pages = new LargePages;  // never gone, since tensors may outlive everything else
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  if (c10::multiply_integers(shape) * int64_t(c10::elementSize(dtype)) < int64_t(kPage)) return at::empty(shape, options);
  return at::detail::empty_generic(shape, large_pages, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}
#else
at::Tensor new_tensor(at::IntArrayRef shape, const at::TensorOptions& options) { return at::empty(shape, options); }
#endif

}  // namespace fastssl
