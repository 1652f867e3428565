"""The most similar rows among those of all processes, and their gradient.

    near_{i,t} = x_{j_t(i)},   j_1(i) .. j_k(i) = the k rows of all processes, i left out, with the largest <x_i, x_j>
    dx_j = sum over processes, i and t with j_t(i) = j of dnear_{i,t}

The rows of all processes pass by those of each, by one gather or in a ring; what stays are the k best so far. Similarities are held
a block of rows at a time. The gradient goes home as a sum for each row, N k D elements, in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops._register import define_composite, first_derivative_only, save, saved
from fastssl.ops.gather_tokens import scatter_rows

from .ranks import Joined
from .travel import Route

BLOCK_ELEMENTS = 1 << 22  # similarities that are held at once: 16 MiB of float32


class _Best:
    """The ``count`` most similar rows so far of the own rows x (N, D), of which the first is row ``first`` of the joined batch."""

    def __init__(self, x: Tensor, count: int, first: int):
        self.x, self.first = x, first
        self.similarity = x.new_full((len(x), count), -torch.inf)
        self.place = torch.zeros(len(x), count, dtype=torch.int64, device=x.device)
        self.near = x.new_zeros(len(x), count, x.shape[1])

    def see(self, own: slice, start: int, columns: Tensor) -> None:
        """Rows ``own`` meet the rows start, start + 1, ... of the joined batch."""
        step = max(1, BLOCK_ELEMENTS // len(columns))
        for begin in range(own.start, own.stop, step):
            self._see(slice(begin, min(begin + step, own.stop)), start, columns)

    def _see(self, own: slice, start: int, columns: Tensor) -> None:
        similarity = self.x[own] @ columns.T
        offset = self.first + own.start - start  # the column that is the first of these rows
        similarity[max(0, -offset) :, max(0, offset) :].diagonal().fill_(-torch.inf)
        count = self.place.shape[1]
        values, place = similarity.topk(min(count, len(columns)), dim=1)
        near = columns[place]
        values = torch.cat([self.similarity[own], values], 1)
        place = torch.cat([self.place[own], place + start], 1)
        near = torch.cat([self.near[own], near], 1)
        self.similarity[own], best = values.topk(count, dim=1)
        self.place[own] = place.gather(1, best)
        self.near[own] = near.gather(1, best[:, :, None].expand(-1, -1, near.shape[2]))


def _check(op: str, total: int, count: int, size: int) -> None:
    if total <= count:
        raise ValueError(f"{op}: z must have more rows in all processes than topk = {count}, got {total}")
    if size and total % size:
        raise ValueError(f"{op}: group_size must divide the number of rows of all processes {total}, got {size}")


def _neighbours(x: Tensor, count: int, size: int, op: str, counts: Tensor, transport: str, name: str) -> tuple[Tensor, Tensor]:
    numbers = counts.tolist()
    total = sum(numbers)
    _check(op, total, count, size)
    route = Route(op, transport, numbers, name)
    first, size = route.starts[route.rank], size or total
    best = _Best(x, count, first)

    def visit(start: int, columns: list[Tensor]) -> None:
        (part,) = columns
        for begin in range(first // size * size, first + len(x), size):  # the groups of the own rows
            own = slice(max(begin - first, 0), min(begin + size - first, len(x)))
            inside = slice(max(begin - start, 0), min(begin + size - start, len(part)))
            if inside.stop > inside.start:
                best.see(own, start + inside.start, part[inside])

    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        route.visit([x], visit)
    return best.near, best.place


_op = define_composite(
    "ranks_neighbours",
    "(Tensor x, SymInt count, SymInt size, str op, Tensor counts, str transport, str name) -> (Tensor, Tensor)",
    lambda x, count, *_: (
        x.new_empty((x.shape[0], count, x.shape[1])),
        x.new_empty((x.shape[0], count), dtype=torch.int64),
    ),
    _neighbours,
)


def _home(dnear: Tensor, place: Tensor, op: str, counts: Tensor, transport: str, name: str) -> Tensor:
    flat, ids = dnear.flatten(0, 1), place.flatten()

    def visit(start: int, columns: list[Tensor]) -> list[Tensor]:
        count = len(columns[0])
        here = (ids >= start) & (ids < start + count)
        part = torch.where(here[:, None], flat, 0.0)
        return [scatter_rows(part[None], torch.where(here, ids - start, 0)[None], count)[0]]

    columns = [dnear.new_empty((len(dnear), 0))]  # a part has a place and a number of rows, and nothing else
    return Route(op, transport, counts.tolist(), name).collect(columns, visit, [dnear.new_empty((0, dnear.shape[2]))])[0]


_bwd = define_composite(
    "ranks_neighbours_bwd",
    "(Tensor dnear, Tensor place, str op, Tensor counts, str transport, str name) -> Tensor",
    lambda dnear, *_: dnear.new_empty((dnear.shape[0], dnear.shape[2])),
    _home,
)


class _Neighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, count, size, op, counts, transport, name):
        near, place = _op(x, count, size, op, counts, transport, name)
        save(ctx, x, place, counts)
        ctx.op, ctx.transport, ctx.name = op, transport, name
        return near

    @staticmethod
    @first_derivative_only("koleo")
    def backward(ctx, dnear):
        _, place, counts = saved(ctx)
        return _bwd(dnear.contiguous(), place, ctx.op, counts, ctx.transport, ctx.name), *(None,) * 6


def neighbours_of_all(joined: Joined, x: Tensor, count: int, size: int | None) -> Tensor:
    """The rows (N, count, D) most similar to each row of x (N, D), float32 or float64, among those of all processes.

    With ``size``, among the ``size`` consecutive rows of its group in the joined batch. The gradient goes to the processes that
    the rows came from.
    """
    counts, transport, name = joined.route()
    return _Neighbours.apply(x, count, size or 0, joined.op, counts, transport, name)
