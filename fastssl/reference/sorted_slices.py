"""The shape loss of VISReg in plain PyTorch, some directions at a time. The equations stand in ``fastssl/ops/sorted_slices.py``."""

import torch
from torch import Tensor

BLOCK = 1 << 22  # projections that are sorted together


def sorted_slices(z: Tensor, directions: Tensor, quantiles: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """z (V, N, D), directions (D, S), quantiles (N,) -> the loss, and dz or nothing (0,)."""
    with torch.autocast(z.device.type, enabled=False):
        return _by_blocks(z, directions, quantiles[:, None], gradient)


def _by_blocks(z: Tensor, directions: Tensor, q: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    views, count, _ = z.shape
    block = max(1, BLOCK // (views * count))
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
