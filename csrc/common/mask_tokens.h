// Masked language modelling for four tokens that share a call of Philox, for the CPU and for CUDA; the equations are in
// fastssl/ops/mask_tokens.py. The including file first defines FASTSSL_FN and includes philox.h, as elements.h explains.

struct TokenRule {
  uint64_t seed;
  int64_t mask_id, ignore_index;
  uint64_t vocab_size, hide, swap, pick;  // below 2^32; thresholds up to 2^32
};

// Masks `count` tokens of a row, from token 4 block on. All pointers point to the first of these tokens; `special` may be null.
FASTSSL_FN void mask_four(const TokenRule& rule, uint32_t row, uint32_t block, int count, const int64_t* ids, const bool* special,
                          int64_t* inputs, int64_t* labels) {
  const Words words = philox({{block, row, 0x6D746F6Bu, 0u}}, rule.seed);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (i >= count) break;
    const uint64_t word = words.word[i];
    const bool chosen = word < rule.pick && !(special && special[i]);
    int64_t id = ids[i];
    labels[i] = chosen ? id : rule.ignore_index;
    if (chosen && word < rule.hide) id = rule.mask_id;
    else if (chosen && word < rule.swap)
      id = int64_t((philox({{4 * block + i, row, 0x6D746F6Cu, 0u}}, rule.seed).word[0] * rule.vocab_size) >> 32);
    inputs[i] = id;
  }
}
