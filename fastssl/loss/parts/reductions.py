"""Log-sum-exp, softplus, and the mean or the sum over rows: how similarities become a loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_choice
from fastssl.distributed.similarity import similarity_lse_rank as of_all
from fastssl.ops.similarity import similarity_lse_rank
from fastssl.ops.similarity_limited import similarity_limited
from fastssl.ops.softplus_sum import softplus_sum

if TYPE_CHECKING:
    from fastssl.distributed.ranks import Joined

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(op: str, reduction: str) -> None:
    """One of the ways of ``reduce_rows``."""
    check_choice(op, "reduction", reduction, REDUCTIONS)


def reduce_rows(loss: Tensor, reduction: str, joined: Joined | None = None) -> Tensor:
    """Losses of rows, of any shape, to their mean or sum; "none" gives them one after the other in one dimension.

    In several processes, where the last dimension is the rows (N,), to this process's share of the mean or sum over all.
    """
    if joined is not None:
        return joined.reduce(loss, reduction)
    return loss.flatten() if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's default threshold of 20 is wrong in the tenth digit of a float64."""
    return nn.functional.softplus(x, threshold=40.0)


def positive_loss(op: str, lse: Tensor, dot: Tensor, scale: float | Tensor, reduction: str, joined: Joined | None = None) -> Tensor:
    """softplus(lse_i - scale dot_(i mod P)), reduced; in several processes as ``reduce_rows``.

    lse is (N,), over the negatives of each row; dot is (P,), of the positive pairs; N is a multiple of P.
    """
    if reduction == "none":
        return softplus(lse.view(-1, len(dot)) - scale * dot).flatten()
    if isinstance(scale, Tensor):
        dot, scale = (scale * dot).to(lse.dtype), 1.0
    if joined is None:
        return softplus_sum(lse, dot, scale, reduction == "mean", op)
    total = softplus_sum(lse, dot, scale, False, op)
    return joined.world * total if reduction == "sum" else joined.mean(total, lse.shape[0] // dot.shape[0])


def lse_rank_of(op: str, x: Tensor, y: Tensor, joined: Joined | None = None, **options) -> tuple[Tensor, Tensor]:
    """``similarity_lse`` of sides that ``op`` has checked, and the rank of a threshold; errors name ``op``. With a ``limit`` (N,)
    it is ``similarity_limited``.

    In several processes the columns are those of all of them, of which each has ``joined.counts``.
    """
    if joined is not None:
        return of_all(joined, x, y, **options)
    limit = options.pop("limit", None)
    return similarity_lse_rank(x, y, op=op, **options) if limit is None else similarity_limited(x, y, limit, op=op, **options)


def lse_of(op: str, x: Tensor, y: Tensor, joined: Joined | None = None, **options) -> Tensor:
    """``similarity_lse`` of sides that ``op`` has checked."""
    return lse_rank_of(op, x, y, joined, **options)[0]


def log_of(count: int | Tensor, like: Tensor) -> float | Tensor:
    """log count of a number of rows; in a graph, where ``math.log`` would make it a constant, a tensor ()."""
    if isinstance(count, Tensor):
        return count.log()
    if not torch.compiler.is_compiling():
        return math.log(count)
    return like.new_full((), count, dtype=accumulator_dtype(like)).log()
