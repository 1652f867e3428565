// Memory in large pages, for tensors of at least one.
#pragma once
#include <cstddef>

namespace fastssl::pages {

constexpr size_t kPage = 1 << 21;  // smaller tensors are torch's

struct Block {
  char* data = nullptr;
  size_t bytes = 0;  // whole pages
};

Block take(size_t bytes);  // at least so many; without an address where there is no memory, and on other systems than Linux
void keep(Block block);    // gives it back, to be taken again or not

}  // namespace fastssl::pages
