"""What the contrastive losses share: reductions, unit rows, positives, row statistics, sums by class."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastssl.ops.normalize import EPS, normalize_pair
from fastssl.ops.softplus_sum import softplus_sum


class RowStats(NamedTuple):
    """Of each row of a contrastive loss, without gradient: what MoCo's and CLIP's training scripts log.

    ``rank`` is the number of negatives more similar than the positive, so ``acc1`` is the share of rows with rank 0.
    Similarities are inner products as the loss saw them, before the temperature.
    """

    loss: Tensor  # (N,)
    rank: Tensor  # (N,) int32
    positive: Tensor  # (N,) similarity of the positive
    negative: Tensor  # (N,) mean similarity of the negatives
    acc1: Tensor  # ()
    acc5: Tensor  # ()


def row_stats(loss: Tensor, rank: Tensor, positive: Tensor, negative: Tensor) -> RowStats:
    with torch.no_grad():
        acc1, acc5 = ((rank < k).float().mean() for k in (1, 5))
        return RowStats(loss.detach(), rank, positive.detach(), negative.detach(), acc1, acc5)


def reduce_rows(loss: Tensor, reduction: str) -> Tensor:
    return loss.flatten() if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's default threshold of 20 is wrong in the tenth digit of a float64."""
    return nn.functional.softplus(x, threshold=40.0)


def positive_loss(lse: Tensor, dot: Tensor, scale: float | Tensor, reduction: str) -> Tensor:
    """softplus(lse_i - scale dot_(i mod P)), reduced: lse (N,) over the negatives, dot (P,) of the positives, N a multiple of P."""
    if reduction == "none":
        return softplus(lse.view(-1, len(dot)) - scale * dot).flatten()
    if isinstance(scale, Tensor):
        dot, scale = (scale * dot).to(lse.dtype), 1.0
    return softplus_sum(lse, dot, scale, reduction == "mean")


def wide_dtype(x: Tensor) -> torch.dtype:
    """What sums over x are kept in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def unit_rows(x: Tensor) -> Tensor:
    """x (..., D) to unit length along D, computed in ``wide_dtype``, in the dtype of x."""
    wide = x.to(wide_dtype(x))
    return (wide / wide.norm(dim=-1, keepdim=True).clamp_min(EPS)).to(x.dtype)


def dot_rows(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i>, a and b (N, D) -> (N,) in ``wide_dtype``."""
    wide = wide_dtype(a)
    return (a.to(wide) * b.to(wide)).sum(1)


def dot_sum(rows: Tensor, keys: Tensor) -> Tensor:
    """sum_j <rows_i, keys_j>, rows (N, D), keys (M, D) -> (N,) in ``wide_dtype``: linear, so O((N + M) D)."""
    wide = wide_dtype(rows)
    return (rows.to(wide) * keys.sum(0, dtype=wide)).sum(1)


def in_given_dtype(x: Tensor):
    """Context in which autocast leaves matrix products alone."""
    return torch.autocast(x.device.type, enabled=False)


def paired(a: Tensor, b: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """a, b (N, D), of unit length if ``normalize``, and their dots (N,)."""
    if not normalize:
        return a, b, dot_rows(a, b)
    z, dot = normalize_pair(a, b)
    return z[: len(a)], z[len(a) :], dot


def arange_ids(x: Tensor, start: int = 0) -> Tensor:
    """(N,) int32, one id for each row of x (N, D); 32-bit ids are the cheapest to compare."""
    return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)


def compact_ids(ids: Tensor) -> Tensor:
    """ids (N,) integers -> (N,) int64 in [0, N), equal where the given ones are; no host sync, unlike torch.unique."""
    value, order = ids.sort(stable=True)
    new = torch.cat([value.new_zeros(1, dtype=torch.int64), (value[1:] != value[:-1]).to(torch.int64)]).cumsum(0)
    return torch.empty_like(new).scatter_(0, order, new)


def class_sums(values: Tensor, ids: Tensor) -> Tensor:
    """values (N, D), compact ids (N,) -> (N, D): row c is the sum over class c, zeros beyond the last class.

    ``index_put`` with accumulation sums in a fixed order on a GPU too, where ``index_add`` does not.
    """
    return torch.zeros_like(values).index_put((ids,), values, accumulate=True)


def refuse_group(op: str, group) -> None:
    if group is not None:
        raise NotImplementedError(f"{op}: group= (negatives from other processes) is not there yet; call it without group")
