"""Block-wise masking, in plain PyTorch: one attempt of all samples at a time."""

import torch
from torch import Tensor

from fastssl.ops._philox import philox, random_bits

_STREAM, _STREAM_TOP_UP = 0x626C6F63, 0x626C6F64


def block_mask(
    num_masked: Tensor,
    seed: Tensor,
    aspects: Tensor,
    rows: int,
    height: int,
    width: int,
    min_block: int,
    max_block: int,
    attempts: int,
    exact: bool,
) -> Tensor:
    """num_masked (N,) int64, seed () int64, aspects (T,) float32 -> (N, H, W) bool, True = removed.

    Asks the device every ``attempts`` rounds whether a sample still looks for blocks.
    """
    device = seed.device
    mask = torch.zeros(rows, height, width, dtype=torch.bool, device=device)
    count, failed = torch.zeros_like(num_masked), torch.zeros_like(num_masked)
    row, zero = torch.arange(rows, device=device), torch.zeros_like(num_masked)
    down, across = torch.arange(height, device=device)[None, :, None], torch.arange(width, device=device)[None, None, :]
    attempt = 0
    while bool(((count < num_masked) & (failed < attempts)).any()):
        for _ in range(attempts):
            active = (count < num_masked) & (failed < attempts)
            words = philox((zero + attempt, row, zero + _STREAM, zero), seed)
            most = (num_masked - count).clamp(max=max_block)
            least = num_masked.clamp(max=min_block)
            h, w, top, left = (t[:, None, None] for t in _block(words, aspects, least, most, height, width))
            inside = (down >= top) & (down < top + h) & (across >= left) & (across < left + w)
            new = (inside & ~mask).sum((1, 2))
            fits = active & (h < height).reshape(-1) & (w < width).reshape(-1) & (new > 0) & (new <= most)
            mask |= inside & fits[:, None, None]
            count += new * fits
            failed = torch.where(fits, 0, failed + 1)
            attempt += 1
    return _topped_up(mask, num_masked - count, seed) if exact else mask


def _block(words, aspects: Tensor, least: Tensor, most: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """Sides and place of a block of each sample, (N,) int64. The area has 20 bits behind the point: exact in float64."""
    area = (least << 20) + (most - least) * (words[0] >> 12)
    area = area.double().float() * 2.0**-20
    aspect = aspects[(words[1] * len(aspects)) >> 32]
    h = (area * aspect).sqrt().round().clamp(max=height).long()
    w = (area / aspect).sqrt().round().clamp(max=width).long()
    return h, w, (words[2] * (height - h + 1)) >> 32, (words[3] * (width - w + 1)) >> 32


def _topped_up(mask: Tensor, missing: Tensor, seed: Tensor) -> Tensor:
    """``missing`` (N,) more patches of each sample by selection sampling: in reading order, with odds of missing to free."""
    flat = mask.reshape(len(mask), -1)
    rows, places = flat.shape
    bits = random_bits(rows, places, seed, _STREAM_TOP_UP)
    free = (~flat).sum(1)
    for place in range(places):
        open_ = ~flat[:, place]
        chosen = open_ & (((bits[:, place] * free) >> 32) < missing)
        flat[:, place] |= chosen
        missing, free = missing - chosen.long(), free - open_.long()
    return flat.reshape(mask.shape)
