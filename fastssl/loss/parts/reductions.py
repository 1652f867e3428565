"""Log-sum-exp, softplus, and the mean or the sum over rows: how similarities become a loss."""

import math

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_choice
from fastssl.ops.similarity import similarity_lse_rank
from fastssl.ops.softplus_sum import softplus_sum

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(op: str, reduction: str) -> None:
    """One of the ways of ``reduce_rows``."""
    check_choice(op, "reduction", reduction, REDUCTIONS)


def reduce_rows(loss: Tensor, reduction: str) -> Tensor:
    """Losses of rows, of any shape, to their mean or sum; "none" gives them one after the other in one dimension."""
    return loss.flatten() if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's default threshold of 20 is wrong in the tenth digit of a float64."""
    return nn.functional.softplus(x, threshold=40.0)


def positive_loss(op: str, lse: Tensor, dot: Tensor, scale: float | Tensor, reduction: str) -> Tensor:
    """softplus(lse_i - scale dot_(i mod P)), reduced.

    lse is (N,), over the negatives of each row; dot is (P,), of the positive pairs; N is a multiple of P.
    """
    if reduction == "none":
        return softplus(lse.view(-1, len(dot)) - scale * dot).flatten()
    if isinstance(scale, Tensor):
        dot, scale = (scale * dot).to(lse.dtype), 1.0
    return softplus_sum(lse, dot, scale, reduction == "mean", op)


def lse_of(op: str, x: Tensor, y: Tensor, **options) -> Tensor:
    """``similarity_lse`` of sides that ``op`` has checked; its errors name ``op``."""
    return similarity_lse_rank(x, y, op=op, **options)[0]


def log_of(count: int, like: Tensor) -> float | Tensor:
    """log count of a number of rows; in a graph, where ``math.log`` would make it a constant, a tensor ()."""
    if not torch.compiler.is_compiling():
        return math.log(count)
    return like.new_full((), count, dtype=accumulator_dtype(like)).log()
