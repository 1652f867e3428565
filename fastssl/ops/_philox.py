"""Philox4x32-10 (Salmon et al. 2011) in plain PyTorch: random bits of a counter and a seed, those of csrc/common/philox.h."""

from typing import Any

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(counter: tuple[Any, Any, Any, Any], seed: int | Tensor) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit words of the counter and a 64-bit seed -> four 32-bit words: int64 tensors, which broadcast, or all numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps round; the low 64 bits are those of the product
        c0, c1, c2, c3 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW, ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def random_16_bits(count: int, stream: int, seed: int | Tensor, device: torch.device) -> Tensor:
    """(count,) int64 in [0, 2^16): element i has half i % 2 of word i % 8 / 2 of the counter (i / 8, its high half, stream, 0)."""
    block = torch.arange((count + 7) // 8, device=device)
    words = philox((block & _LOW, block >> 32, torch.full_like(block, stream), torch.zeros_like(block)), seed)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, 1).reshape(-1)[:count]


def random_bits(rows: int, length: int, seed: Tensor, stream: int) -> Tensor:
    """(rows, length) int64 in [0, 2^32): word l mod 4 of the counter (l / 4, row, stream, 0) under the seed ()."""
    block = torch.arange((length + 3) // 4, device=seed.device)[None, :]
    row = torch.arange(rows, device=seed.device)[:, None]
    words = philox((block, row, torch.full_like(block, stream), torch.zeros_like(block)), seed)
    wide = [word.expand(rows, block.shape[1]) for word in words]
    return torch.stack(wide, 2).reshape(rows, -1)[:, :length]
