// Inputs and labels of masked language modelling by common/mask_tokens.h, four tokens of a row at a time.
//   ids (N, L) int64, special (N, L) bool or none -> inputs, labels (N, L) int64; 8 or 9 bytes read, 16 written for each token
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/tensor.h"

namespace fastssl {
namespace {

#define FASTSSL_FN inline
#include "common/philox.h"

#include "common/mask_tokens.h"
#undef FASTSSL_FN

std::tuple<Tensor, Tensor> mask_tokens(const Tensor& given, const std::optional<Tensor>& special, const Tensor& seed,
                                       int64_t mask_id, int64_t vocab_size, int64_t hide, int64_t swap, int64_t pick,
                                       int64_t ignore_index) {
  const Tensor ids = as_contiguous(given), never = special ? as_contiguous(*special) : Tensor();
  FASTSSL_CHECK(ids.dim() == 2 && seed.numel() == 1 && (!special || never.numel() == ids.numel()),
                "mask_tokens: bad ids, special or seed");
  const int64_t N = ids.size(0), L = ids.size(1);
  const Tensor inputs = empty({N, L}, ids.scalar_type()), labels = empty({N, L}, ids.scalar_type());
  const TokenRule rule{uint64_t(*seed.const_data_ptr<int64_t>()),
                       mask_id,
                       ignore_index,
                       uint64_t(vocab_size),
                       uint64_t(hide),
                       uint64_t(swap),
                       uint64_t(pick)};
  const int64_t* from = ids.const_data_ptr<int64_t>();
  const bool* marks = special ? never.const_data_ptr<bool>() : nullptr;
  int64_t *to = inputs.mutable_data_ptr<int64_t>(), *label = labels.mutable_data_ptr<int64_t>();
  parallel_for(N, L, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++)
      for (int64_t l = 0; l < L; l += 4) {
        const int64_t at = n * L + l;
        const int count = int(std::min<int64_t>(4, L - l));
        mask_four(rule, uint32_t(n), uint32_t(l / 4), count, from + at, marks ? marks + at : nullptr, to + at, label + at);
      }
  });
  return {inputs, labels};
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("mask_tokens", TORCH_BOX(&fastssl::mask_tokens)); }
