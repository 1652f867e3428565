// Philox4x32-10 (Salmon et al. 2011): counter-based random bits, the same on the CPU, in CUDA and in fastssl/ops/_philox.py.
// The including file defines FASTSSL_FN; there is no include guard, for the reason that elements.h gives.

struct Words {
  uint32_t word[4];
};

FASTSSL_FN Words philox(Words c, uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t(c.word[0]) * 0xD2511F53u, b = uint64_t(c.word[2]) * 0xCD9E8D57u;
    c = {{uint32_t(b >> 32) ^ c.word[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c.word[3] ^ k1, uint32_t(a)}};
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

// The words that the elements 8 block to 8 block + 7 of a stream share. Element i takes half i % 2 of word i % 8 / 2.
FASTSSL_FN Words random_words(uint64_t block, uint32_t stream, uint64_t seed) {
  return philox({{uint32_t(block), uint32_t(block >> 32), stream, 0u}}, seed);
}

FASTSSL_FN uint32_t random_half(const Words& words, int place) { return (words.word[place / 2] >> (16 * (place % 2))) & 0xFFFFu; }
