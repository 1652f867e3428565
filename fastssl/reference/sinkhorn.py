"""The steps of Sinkhorn's iteration on potentials in plain PyTorch."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .soft_cross_entropy import exponents


def _of_group(values: Tensor, inner: int, groups: int) -> Tensor:
    """Rows (M, K) as (outer, G, inner, K)."""
    return values.reshape(-1, groups, inner, values.shape[1])


def sinkhorn_start(logits: Tensor, temperature: Tensor, inner: int, groups: int) -> tuple[Tensor, Tensor]:
    """logits (M, K) -> of each group's rows the largest logit of each prototype, and sum exp((x - top) / T); (G, K) both."""
    if logits.shape[0] == 0:
        shape, dtype = (groups, logits.shape[1]), accumulator_dtype(logits)
        return logits.new_full(shape, -torch.inf, dtype=dtype), logits.new_zeros(shape, dtype=dtype)
    x = _of_group(logits.to(accumulator_dtype(logits)), inner, groups)
    top = x.amax((0, 2))
    base = torch.where(top == -torch.inf, 0.0, top)
    return top, ((x - base[:, None]) / temperature.to(x.dtype)).exp().sum((0, 2))


def sinkhorn_step(logits: Tensor, bias: Tensor, temperature: Tensor, heads: list[int], inner: int) -> Tensor:
    """logits (M, K), bias (G, K) -> (G, K): the sum over each group's rows of softmax((x + bias) / T), head by head."""
    dtype, groups = accumulator_dtype(logits), len(bias)
    sums = logits.new_zeros((groups, logits.shape[1]), dtype=dtype)
    start = 0
    for size in heads if logits.shape[0] else []:
        head = slice(start, start + size)
        start += size
        z = exponents(logits[:, head].to(dtype), temperature.to(dtype), bias[:, head], inner)
        empty = (logits[:, head] == -torch.inf).all(1, keepdim=True)  # adds nothing
        sums[:, head] = _of_group(torch.where(empty, 0.0, z.softmax(1)), inner, groups).sum((0, 2))
    return sums
