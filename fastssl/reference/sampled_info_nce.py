"""InfoNCE over sampled negatives in plain PyTorch, some queries at a time. The equations: ``fastssl/ops/sampled_info_nce.py``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

ELEMENTS = 1 << 22  # of the rows that are there at once


def _unit(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows of length 1 in float32 or wider, and what they were divided by (N, 1)."""
    wide = rows.to(accumulator_dtype(rows))
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(eps)
    return wide / length, length


def _logits(cosines: Tensor, scale: Tensor) -> Tensor:
    """scale times the cosines; -inf where they are, whatever the sign of the scale."""
    return torch.where(cosines == -torch.inf, cosines, scale * cosines)


def _weighted(weight: Tensor, cosines: Tensor) -> Tensor:
    return weight * cosines.masked_fill(cosines == -torch.inf, 0.0)


def _einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """In the dtype that a and b have, whatever autocast says."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.einsum(equation, a, b)


def _blocks(index: Tensor, width: int) -> Iterator[slice]:
    step = max(1, ELEMENTS // (index.shape[1] * width))
    return (slice(first, first + step) for first in range(0, len(index), step))


def sampled_info_nce_fwd(
    query: Tensor, keys: Tensor, index: Tensor, scale: Tensor, eps: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query (M, D), keys (K, D), index (M, E) -> loss, slope and lse (M,), cosines (M, E), dquery (M, D) or (M, 0)."""
    (x, length), (y, _) = _unit(query, eps), _unit(keys, eps)
    cosines = x.new_empty(index.shape)
    for block in _blocks(index, x.shape[1]):
        named = keys[index[block]]
        again = (named == named[:, :1]).all(2)
        again[:, 0] = False
        cosines[block] = _einsum("nd,ned->ne", x[block], y[index[block]]).masked_fill(again, -torch.inf)
    logits = _logits(cosines, scale)
    lse = torch.logsumexp(logits, 1)
    share = (logits - lse[:, None]).exp()
    slope = _weighted(share, cosines).sum(1) - cosines[:, 0]
    loss = lse - logits[:, 0]
    if not gradient:
        return loss, slope, lse, cosines, x.new_empty(len(x), 0)
    dquery = torch.empty_like(x)
    for block in _blocks(index, x.shape[1]):
        named = y[index[block]]
        dquery[block] = _einsum("ne,ned->nd", share[block], named) - named[:, 0]
    along = torch.where(length > eps, slope[:, None], 0.0)
    return loss, slope, lse, cosines, scale / length * (dquery - along * x)


def sampled_info_nce_bwd(
    dloss: Tensor, query: Tensor, keys: Tensor, index: Tensor, scale: Tensor, lse: Tensor, cosines: Tensor, eps: float
) -> Tensor:
    """dloss (M,) -> the gradient of keys (K, D)."""
    (x, _), (y, length) = _unit(query, eps), _unit(keys, eps)
    weight = (_logits(cosines, scale) - lse[:, None]).exp()
    weight[:, 0] -= 1.0
    weight *= (scale * dloss)[:, None]
    gradient = torch.zeros_like(y)
    for block in _blocks(index, x.shape[1]):
        each = weight[block][:, :, None] * x[block][:, None]
        gradient.index_add_(0, index[block].flatten(), each.flatten(0, 1))
    along = y.new_zeros(len(y)).index_add_(0, index.flatten(), _weighted(weight, cosines).flatten())
    along = torch.where(length > eps, along[:, None], 0.0)
    return ((gradient - along * y) / length).to(keys.dtype)
