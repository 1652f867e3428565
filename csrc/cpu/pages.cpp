// Keeps the memory of large tensors that are gone for the next ones, which then touch no new pages. The kernel may take what is
// kept whenever it is short of memory (MADV_FREE), and what it took comes back as new pages.
#include "cpu/pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>

namespace fastssl::pages {
#ifdef __linux__
namespace {

constexpr size_t kMostKept = 256 << 20;  // bytes in all
constexpr int kMostBlocks = 8;

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

}  // namespace

void keep(Block block) {
  if (block.bytes > kMostKept || madvise(block.data, block.bytes, MADV_FREE) != 0 || busy.test_and_set(std::memory_order_acquire))
    return unmap(block);
  while (blocks == kMostBlocks || kept_bytes + block.bytes > kMostKept) unmap(take_out(0));
  kept[blocks++] = block, kept_bytes += block.bytes;
  busy.clear(std::memory_order_release);
}

Block take(size_t bytes) {
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  const Block block = take_kept(whole);
  return block.data ? block : map(whole);
}
#else
Block take(size_t) { return {}; }
void keep(Block) {}
#endif

}  // namespace fastssl::pages
