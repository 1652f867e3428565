"""The sum of squares of x^T y over the rows of all processes (``ops/squared_products.py``), in every process.

    covariance   each process multiplies its own rows, and the D x D products are added over processes: D^2 numbers travel
    gram         the rows travel; each process multiplies its N rows with the M of all, and the totals are added: M D numbers travel

The backward needs the own rows of the gradient alone, which the rows or the D x D products of all give without a further exchange.
The gradient is that of the sum of all processes' losses, which are equal: W times that of one process with the joined batch, as
DistributedDataParallel expects it, which takes the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import squared_products as local
from fastssl.ops._register import define_composite, first_derivative_only, save, saved

from .class_sums import sum_without_gradient
from .ranks import Joined
from .travel import Route


def _gathered(x: Tensor, y: Tensor | None, counts: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    sides = [x] if y is None else [x, y]
    all_x, *rest = Route("squared_products", "gather", counts.tolist(), name).gathered(sides)
    return all_x, rest[0] if rest else None


def _forward(x, y, gram, keep, counts, name):
    nothing = x.new_empty(0)
    if not gram:
        a, b = local.matrices(x, y, x, y, False)
        a = sum_without_gradient(a, name)
        diagonal = local.take_diagonal(a)
        return local.sum_of_products(a, a), diagonal, a, b, nothing, nothing.clone()
    all_x, all_y = _gathered(x, y, counts, name)
    a, b = local.matrices(x, y, all_x, all_y, True)
    partial = torch.cat([local.sum_of_products(a, a if y is None else b)[:, None], local.diagonal_of(x, y)], 1)
    total, diagonal = sum_without_gradient(partial, name).split([1, x.shape[2]], 1)
    total = total[:, 0] - diagonal.square().sum(1)
    if not keep:
        return total, diagonal.clone(), nothing, *(nothing.clone() for _ in range(3))
    return total, diagonal.clone(), a, b, all_x, nothing.clone() if all_y is None else all_y


def _fake_fwd(x, y, gram, keep, counts, name):
    (n, p, d), empty = x.shape, [x.new_empty(0) for _ in range(4)]
    if not gram:
        empty[0] = x.new_empty(p, d, d)
    elif keep:
        m = n * counts.shape[0]
        for at in range(1 if y is None else 2):
            empty[at], empty[2 + at] = x.new_empty(p, n, m), x.new_empty(m, p, d)
    return x.new_empty(p), x.new_empty(p, d), *empty


def _backward(dtotal, ddiagonal, x, y, diagonal, a, b, all_x, all_y, gram, counts, name):
    upstream = sum_without_gradient(torch.cat([dtotal[:, None], ddiagonal], 1), name)
    rows: tuple[Tensor, Tensor | None] = (all_x, all_y)
    if gram and not len(all_x):
        rows = _gathered(x, y, counts, name)
        a, b = local.matrices(x, y, *rows, True)
    return local.gradients(upstream[:, 0], upstream[:, 1:], x, y, *rows, diagonal, a, b, gram)


_RANKS = "Tensor counts, str name"
_fwd = define_composite(
    "ranks_squared_products_fwd",
    f"(Tensor x, Tensor? y, bool gram, bool keep, {_RANKS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_fwd,
    _forward,
)
_bwd = define_composite(
    "ranks_squared_products_bwd",
    "(Tensor dtotal, Tensor ddiagonal, Tensor x, Tensor? y, Tensor diagonal, Tensor a, Tensor b, Tensor all_x, Tensor all_y, "
    f"bool gram, {_RANKS}) -> (Tensor, Tensor)",
    lambda dtotal, ddiagonal, x, y, *_: (x.new_empty(x.shape), x.new_empty(0 if y is None else y.shape)),
    _backward,
)


class _SquaredProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gram, keep, counts, name, op):
        total, diagonal, *kept = _fwd(x, y, gram, keep, counts, name)
        save(ctx, x, y, diagonal, *kept, counts)
        ctx.gram, ctx.name, ctx.op = gram, name, op
        return total, diagonal

    @staticmethod
    @first_derivative_only("squared_products")
    def backward(ctx, dtotal, ddiagonal):
        x, y, diagonal, a, b, all_x, all_y, counts = saved(ctx)
        dx, dy = _bwd(dtotal, ddiagonal, x, y, diagonal, a, b, all_x, all_y, ctx.gram, counts, ctx.name)
        wants = ctx.needs_input_grad
        return dx if wants[0] else None, dy if wants[1] and y is not None else None, *(None,) * 5


def squared_products(joined: Joined, x: Tensor, y: Tensor | None, gram: bool) -> tuple[Tensor, Tensor]:
    """``squared_products`` of ``ops`` for the own rows x and y (N, P, D) and those of all: total (P,), diagonal (P, D)."""
    return _SquaredProducts.apply(x, y, gram, joined.keep, joined.counts, joined.name, joined.op)
