"""The shape loss of VISReg in plain PyTorch, some directions at a time. The equations stand in ``fastssl/ops/sorted_slices.py``."""

import torch
from torch import Tensor

BLOCK = 1 << 22  # projections that are sorted together


def quantiles(count: int, like: Tensor) -> Tensor:
    """q (count,) in the dtype and on the device of ``like``, rounded once."""
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=like.device)
    return torch.special.ndtri(ranks / (count + 1)).to(like.dtype)


def sorted_slices(z: Tensor, directions: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """z (V, N, D), directions (D, S) -> the loss, and dz or nothing (0,)."""
    with torch.autocast(z.device.type, enabled=False):
        return _by_blocks(z, directions, gradient)


def _by_blocks(z: Tensor, directions: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    views, count, _ = z.shape
    block = max(1, BLOCK // (views * count))
    q = quantiles(count, z)[:, None]
    loss, dz = z.new_zeros((), dtype=torch.float64), torch.zeros_like(z) if gradient else z.new_empty(0)
    factor = 1.0 / (views * count * directions.shape[1])
    for some in directions.split(block, 1):
        ordered, place = (z @ some).sort(1)
        error = ordered - q
        loss += error.square().sum(dtype=torch.float64)
        if gradient:
            dx = torch.empty_like(error).scatter_(1, place, error * (2.0 * factor))
            dz += dx @ some.t()
    return (loss * factor).to(z.dtype), dz
