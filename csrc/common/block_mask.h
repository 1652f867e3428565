// Block-wise masking of one sample, one source for the CPU and for CUDA; the equations are in fastssl/ops/block_mask.py. Included
// after philox.h where FASTSSL_FN says what a function is; no include guard, as elements.h. No sum of a product is formed in floating
// point, so contraction changes nothing: s q, s / q and the roots are rounded once each, as IEEE 754 defines them.

struct BlockRule {
  uint64_t seed;
  const float* aspects;  // (T,)
  int64_t T, H, W, min_block, max_block, attempts;
  bool exact;
};

// The mask of a sample, a bit a patch: rows of `words` words, word i of them at bits[i * step].
struct BlockBits {
  uint32_t* bits;
  int64_t words, step;

  FASTSSL_METHOD uint32_t& word(int64_t row, int64_t j) const { return bits[(row * words + j) * step]; }
};

struct Block {
  int64_t h, w, top, left;
};

FASTSSL_FN int64_t scaled_word(uint32_t word, int64_t below) { return int64_t((uint64_t(word) * uint64_t(below)) >> 32); }

FASTSSL_FN int bits_set(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// Bits of word j of a row that lie in columns left .. left + w - 1.
FASTSSL_FN uint32_t column_bits(int64_t j, int64_t left, int64_t w) {
  const int64_t from = left - 32 * j, to = left + w - 32 * j;
  const uint32_t below_to = to >= 32 ? ~0u : to <= 0 ? 0u : (1u << to) - 1u;
  const uint32_t below_from = from >= 32 ? ~0u : from <= 0 ? 0u : (1u << from) - 1u;
  return below_to & ~below_from;
}

// The sides fit the grid strictly where the caller uses the place; elsewhere it is not looked at.
FASTSSL_FN Block block_of(const Words& words, const BlockRule& rule, int64_t most) {
  const int64_t area = rule.min_block * (1 << 20) + (most - rule.min_block) * int64_t(words.word[0] >> 12);
  const float s = float(double(area)) * (1.0f / (1 << 20)), q = rule.aspects[scaled_word(words.word[1], rule.T)];
  Block block;
  block.h = int64_t(rintf(sqrtf(s * q))), block.w = int64_t(rintf(sqrtf(s / q)));
  const int64_t downs = rule.H - block.h + 1, acrosses = rule.W - block.w + 1;
  block.top = scaled_word(words.word[2], downs < 1 ? 1 : downs);
  block.left = scaled_word(words.word[3], acrosses < 1 ? 1 : acrosses);
  return block;
}

FASTSSL_FN int64_t newly_masked(const BlockBits& mask, const Block& b) {
  int64_t count = 0;
  for (int64_t row = b.top; row < b.top + b.h; row++)
    for (int64_t j = b.left / 32; 32 * j < b.left + b.w; j++) count += bits_set(column_bits(j, b.left, b.w) & ~mask.word(row, j));
  return count;
}

FASTSSL_FN void add_block(const BlockBits& mask, const Block& b) {
  for (int64_t row = b.top; row < b.top + b.h; row++)
    for (int64_t j = b.left / 32; 32 * j < b.left + b.w; j++) mask.word(row, j) |= column_bits(j, b.left, b.w);
}

// Selection sampling (Knuth, volume 2, algorithm S): each free patch in reading order with odds of missing to free.
FASTSSL_FN void top_up(const BlockBits& mask, const BlockRule& rule, uint32_t sample, int64_t missing, int64_t free) {
  Words words{};
  for (int64_t place = 0; missing > 0 && place < rule.H * rule.W; place++) {
    if (place % 4 == 0) words = philox({{uint32_t(place / 4), sample, 0x626C6F64u, 0u}}, rule.seed);
    const int64_t row = place / rule.W, column = place % rule.W;
    uint32_t& word = mask.word(row, column / 32);
    const uint32_t bit = 1u << (column % 32);
    if (word & bit) continue;
    if (scaled_word(words.word[place % 4], free) < missing) word |= bit, missing--;
    free--;
  }
}

// Draws the blocks of a sample into `mask`, all zero before.
FASTSSL_FN void mask_blocks(const BlockBits& mask, const BlockRule& rule, uint32_t sample, int64_t goal) {
  int64_t count = 0, failed = 0;
  for (uint32_t attempt = 0; count < goal && failed < rule.attempts; attempt++, failed++) {
    const int64_t most = goal - count < rule.max_block ? goal - count : rule.max_block;
    const Block b = block_of(philox({{attempt, sample, 0x626C6F63u, 0u}}, rule.seed), rule, most);
    if (b.h >= rule.H || b.w >= rule.W) continue;
    const int64_t added = newly_masked(mask, b);
    if (added < 1 || added > most) continue;
    add_block(mask, b);
    count += added, failed = -1;
  }
  if (rule.exact) top_up(mask, rule, sample, goal - count, rule.H * rule.W - count);
}
