"""Unit columns from a seed, in plain PyTorch. The equation stands in ``fastssl/ops/unit_columns.py``."""

import math

import torch
from torch import Tensor

from fastssl.ops._philox import random_bits
from fastssl.ops.unit_columns import STREAM


def unit_columns(seed: Tensor, width: int, count: int, dtype: torch.dtype) -> Tensor:
    """seed () int64 -> (width, count), columns of length 1 in ``dtype``."""
    bits = random_bits(count, (width + 3) // 4 * 4, seed, STREAM)  # (S, D) rounded up to whole counters
    u = ((bits >> 8) + 1).double() * 2.0**-24
    radius, angle = (-2.0 * u[:, 0::2].log()).sqrt(), 2.0 * math.pi * u[:, 1::2]
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], 2).flatten(1)[:, :width]
    return torch.nn.functional.normalize(normal, dim=1, eps=1e-30).t().contiguous().to(dtype)
