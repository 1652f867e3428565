// Block-wise masks by common/block_mask.h: a sample is drawn with one bit for each patch, then one byte is written for each.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tensor.h"

namespace fastssl {
namespace {

#define FASTSSL_FN inline
#include "common/philox.h"

#include "common/block_mask.h"
#undef FASTSSL_FN

// Draws the samples of a range with one array of bits, which is used again for each sample.
void mask_samples(const BlockRule& rule, const int64_t* num_masked, bool* out, int64_t begin, int64_t end) {
  const int words = (rule.W + 31) / 32;
  std::vector<uint32_t> bits(size_t(rule.H) * words);
  const BlockBits mask{bits.data(), words, 1};
  for (int64_t n = begin; n < end; n++) {
    std::fill(bits.begin(), bits.end(), 0u);
    mask_blocks(mask, rule, uint32_t(n), int(std::clamp<int64_t>(num_masked[n], 0, rule.H * rule.W)));
    bool* to = out + n * rule.H * rule.W;
    for (int row = 0; row < rule.H; row++)
      for (int column = 0; column < rule.W; column++) *to++ = word_of(mask, row, column / 32) >> (column % 32) & 1u;
  }
}

Tensor block_mask(const Tensor& num_masked, const Tensor& seed, const Tensor& aspects, int64_t rows, int64_t height, int64_t width,
                  int64_t min_block, int64_t max_block, int64_t attempts, bool exact) {
  FASTSSL_CHECK(rows > 0 && height > 0 && width > 0 && height <= 512 && width <= 512, "block_mask: bad size");
  FASTSSL_CHECK(min_block > 0 && min_block < (int64_t(1) << 31) && max_block > 0 && max_block < (int64_t(1) << 31),
                "block_mask: bad min_block or max_block");
  FASTSSL_CHECK(num_masked.numel() == rows && seed.numel() == 1 && aspects.numel() > 0 && aspects.numel() < (int64_t(1) << 31),
                "block_mask: bad num_masked, seed or aspects");
  const Tensor goals = as_contiguous(num_masked), table = as_contiguous(aspects);
  const Tensor out = empty({rows, height, width}, ScalarType::Bool);
  const BlockRule rule{uint64_t(*seed.const_data_ptr<int64_t>()),
                       table.const_data_ptr<float>(),
                       int(table.numel()),
                       int(height),
                       int(width),
                       int(min_block),
                       int(max_block),
                       int(attempts),
                       exact};
  const int64_t* from = goals.const_data_ptr<int64_t>();
  bool* to = out.mutable_data_ptr<bool>();
  parallel_for(rows, kGrain / 16, [&](int64_t begin, int64_t end) { mask_samples(rule, from, to, begin, end); });
  return out;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("block_mask", TORCH_BOX(&fastssl::block_mask)); }
