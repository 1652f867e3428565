"""Masked language modelling's inputs and labels, in plain PyTorch."""

import torch
from torch import Tensor

from fastssl.ops._philox import philox, random_bits


def mask_tokens(
    ids: Tensor,
    special: Tensor | None,
    seed: Tensor,
    mask_id: int,
    vocab_size: int,
    hide: int,
    swap: int,
    pick: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """ids (N, L) int64, special (N, L) bool -> inputs, labels (N, L) int64."""
    rows, length = ids.shape
    bits = random_bits(rows, length, seed, 0x6D746F6B)
    if special is not None:
        bits = bits.masked_fill(special, 1 << 32)
    place, row = torch.arange(length, device=ids.device)[None, :], torch.arange(rows, device=ids.device)[:, None]
    word = philox((place, row, torch.full_like(place, 0x6D746F6C), torch.zeros_like(place)), seed)[0]
    others = word * vocab_size  # below 2^64: the shift must not carry the sign
    others = (others >> 32) & 0xFFFFFFFF
    inputs = torch.where(bits < hide, mask_id, torch.where(bits < swap, others, ids))
    return inputs, torch.where(bits < pick, ids, ignore_index)
