// Block-wise masking of one sample, for the CPU and for CUDA; the equations are in fastssl/ops/block_mask.py. The including file
// first defines FASTSSL_FN and includes philox.h, as elements.h explains. No floating-point product is added to anything, so that
// contraction to fused multiply-add changes nothing: s q, s / q and the roots are rounded once each, as IEEE 754 defines them.

struct BlockRule {
  uint64_t seed;
  const float* aspects;  // (T,)
  int T, H, W;           // H W below 2^31
  int min_block, max_block, attempts;
  bool exact;
};

// The mask of a sample, with one bit for each patch. Each row has `words` words, and word i of the mask lies at bits[i * step].
struct BlockBits {
  uint32_t* bits;
  int words, step;
};
FASTSSL_FN uint32_t& word_of(const BlockBits& mask, int row, int j) {
  return mask.bits[(int64_t(row) * mask.words + j) * mask.step];
}

struct Block {
  int h, w, top, left;
};

FASTSSL_FN int scaled_word(uint32_t word, int below) { return int((uint64_t(word) * uint32_t(below)) >> 32); }

FASTSSL_FN int bits_set(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// The bits of word j of a row that stand for columns left .. left + w - 1.
FASTSSL_FN uint32_t column_bits(int j, int left, int w) {
  const int from = left - 32 * j, to = left + w - 32 * j;
  const uint32_t below_to = to >= 32 ? ~0u : to <= 0 ? 0u : (1u << to) - 1u;
  const uint32_t below_from = from >= 32 ? ~0u : from <= 0 ? 0u : (1u << from) - 1u;
  return below_to & ~below_from;
}

// The side of a block, at most that of the grid. The caller refuses blocks that are as large as the grid.
FASTSSL_FN int side_of(float square, int grid) {
  const float side = rintf(sqrtf(square));
  return side < float(grid) ? int(side) : grid;
}

FASTSSL_FN Block block_of(const Words& words, const BlockRule& rule, int least, int most) {
  const int64_t area = int64_t(least) * (1 << 20) + int64_t(most - least) * int64_t(words.word[0] >> 12);
  const float s = float(double(area)) * (1.0f / (1 << 20)), q = rule.aspects[scaled_word(words.word[1], rule.T)];
  Block block;
  block.h = side_of(s * q, rule.H), block.w = side_of(s / q, rule.W);
  block.top = scaled_word(words.word[2], rule.H - block.h + 1);
  block.left = scaled_word(words.word[3], rule.W - block.w + 1);
  return block;
}

FASTSSL_FN int newly_masked(const BlockBits& mask, const Block& b) {
  int count = 0;
  for (int row = b.top; row < b.top + b.h; row++)
    for (int j = b.left / 32; 32 * j < b.left + b.w; j++) count += bits_set(column_bits(j, b.left, b.w) & ~word_of(mask, row, j));
  return count;
}

FASTSSL_FN void add_block(const BlockBits& mask, const Block& b) {
  for (int row = b.top; row < b.top + b.h; row++)
    for (int j = b.left / 32; 32 * j < b.left + b.w; j++) word_of(mask, row, j) |= column_bits(j, b.left, b.w);
}

// Selection sampling (Knuth, volume 2, algorithm S): row by row, each free patch is taken with the probability missing / free.
FASTSSL_FN void top_up(const BlockBits& mask, const BlockRule& rule, uint32_t sample, int missing, int free) {
  Words words{};
  for (int place = 0; missing > 0 && place < rule.H * rule.W; place++) {
    if (place % 4 == 0) words = philox({{uint32_t(place / 4), sample, 0x626C6F64u, 0u}}, rule.seed);
    const int row = place / rule.W, column = place % rule.W;
    uint32_t& word = word_of(mask, row, column / 32);
    const uint32_t bit = 1u << (column % 32);
    if (word & bit) continue;
    if (scaled_word(words.word[place % 4], free) < missing) word |= bit, missing--;
    free--;
  }
}

// Draws the blocks of a sample into `mask`, which must be all zero.
FASTSSL_FN void mask_blocks(const BlockBits& mask, const BlockRule& rule, uint32_t sample, int goal) {
  const int least = goal < rule.min_block ? goal : rule.min_block;
  int count = 0, failed = 0;
  for (uint32_t attempt = 0; count < goal && failed < rule.attempts; attempt++, failed++) {
    const int most = goal - count < rule.max_block ? goal - count : rule.max_block;
    const Block b = block_of(philox({{attempt, sample, 0x626C6F63u, 0u}}, rule.seed), rule, least, most);
    if (b.h >= rule.H || b.w >= rule.W) continue;
    const int added = newly_masked(mask, b);
    if (added < 1 || added > most) continue;
    add_block(mask, b);
    count += added, failed = -1;
  }
  if (rule.exact) top_up(mask, rule, sample, goal - count, rule.H * rule.W - count);
}
