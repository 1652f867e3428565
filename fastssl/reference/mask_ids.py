"""Random masking by a stable argsort, in plain PyTorch."""

import torch
from torch import Tensor

from .philox import philox


def random_bits(rows: int, length: int, seed: Tensor, stream: int) -> Tensor:
    """(rows, length) int64 in [0, 2^32): word l mod 4 of the counter (l / 4, row, stream, 0) under the seed ()."""
    block = torch.arange((length + 3) // 4, device=seed.device)[None, :]
    row = torch.arange(rows, device=seed.device)[:, None]
    words = philox((block, row, torch.full_like(block, stream), torch.zeros_like(block)), seed)
    words = [word.expand(rows, block.shape[1]) for word in words]
    return torch.stack(words, 2).reshape(rows, -1)[:, :length]


def mask_ids(noise: Tensor | None, seed: Tensor | None, rows: int, length: int, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """noise (N, L), or seed () -> ids_shuffle, ids_restore (N, L) int64 and mask (N, L) float32, 1 = removed."""
    key = random_bits(rows, length, seed, 0x6D61736B) if noise is None else noise
    shuffle = torch.argsort(key, dim=1, stable=True)
    places = torch.arange(length, device=key.device).expand(rows, length)
    restore = torch.empty_like(shuffle).scatter_(1, shuffle, places)
    return shuffle, restore, (restore >= keep).float()
