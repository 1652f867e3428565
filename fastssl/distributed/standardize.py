"""Columns of two views brought to mean 0, and variance 1 where wanted, over the rows of all processes (``ops/standardize.py``).

First the means of all rows are made and then the variances around them: two sums of (2, C) float64 numbers over processes. The
backward of scaled columns takes one more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import standardize as local
from fastssl.ops._register import define_composite, distinct, first_derivative_only, save, saved

from .class_sums import sum_without_gradient
from .ranks import Joined


def _moments(a: Tensor, b: Tensor, total: Tensor, name: str) -> Tensor:
    mean = sum_without_gradient(len(a) * torch.stack([local.means_of(a), local.means_of(b)]), name) / total
    squares = torch.stack([local.centred(t, m).square().sum(0) for t, m in zip((a, b), mean, strict=True)])
    return torch.cat([mean, sum_without_gradient(squares.double(), name) / total])


_joined_moments = define_composite(
    "ranks_moments",
    "(Tensor a, Tensor b, Tensor total, str name) -> Tensor",
    lambda a, b, total, name: a.new_empty(4, a.shape[1], dtype=torch.float64),
    _moments,
)


def _dots(dx: Tensor, dy: Tensor, x: Tensor, y: Tensor, total: Tensor, name: str) -> Tensor:
    return sum_without_gradient(torch.stack([local.dots_of(dx, x), local.dots_of(dy, y)]), name) / total.to(x.dtype)


_joined_dots = define_composite(
    "ranks_dots",
    "(Tensor dx, Tensor dy, Tensor x, Tensor y, Tensor total, str name) -> Tensor",
    lambda dx, dy, x, y, total, name: x.new_empty(2, x.shape[1]),
    _dots,
)


class _StandardizePair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, moments, total, eps, scaled, name, op):
        x, y, stats, apart = local._fwd(a, b, eps, scaled, moments)
        save(ctx, x, y, stats, total)
        ctx.scaled, ctx.dtype, ctx.name, ctx.op = scaled, a.dtype, name, op
        return x, y, apart

    @staticmethod
    @first_derivative_only("standardize_pair")
    def backward(ctx, dx, dy, dapart):
        x, y, stats, total = saved(ctx)
        dots = _joined_dots(dx, dy, x, y, total, ctx.name) if ctx.scaled else None
        da, db = local._bwd(dx, dy, dapart, x, y, stats, dots, ctx.scaled, ctx.dtype)
        wants = ctx.needs_input_grad
        return da if wants[0] else None, db if wants[1] else None, *(None,) * 6


def moments_of_all(joined: Joined, a: Tensor, b: Tensor) -> Tensor:
    """``moments_of`` of ``ops`` over the rows of all processes, without gradient."""
    return _joined_moments(a.detach(), b.detach(), joined.total, joined.name)


def standardize_pair(
    joined: Joined, a: Tensor, b: Tensor, eps: float | None, moments: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``standardize_pair`` of ``ops`` for the own rows a and b (N, C), by the moments of all rows; ``apart`` is of the own rows."""
    moments = moments_of_all(joined, a, b) if moments is None else moments
    return _StandardizePair.apply(a, distinct(b, a), moments, joined.total, eps or 0.0, eps is not None, joined.name, joined.op)
