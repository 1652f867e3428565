"""Sums over the rows of all processes: of all of them, or of those with the same id.

    sum_of_all(v)           = sum_r sum_j v_j                                     v (N_r, C) of each process -> (C,)
    class_sums_of_all(v)_i  = sum_r sum_{j : v_id_j = id_i} v_j                   v (N_r, C) of each process -> (N, C)

Both are linear. The gradient of the first is the sum of all processes' upstream gradients. The second is its own transpose: its
gradient is the class sum of the upstream gradients, with the two kinds of ids exchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops._register import define_composite

from .collectives import all_reduce, group_called
from .failures import named
from .ranks import Joined
from .travel import Route


def _all_reduced(value: Tensor, name: str) -> Tensor:
    with named("sum_of_all", "the sum over processes", name):
        return all_reduce(value, group_called(name)).clone()


_sum = define_composite(
    "ranks_sum", "(Tensor value, str name) -> Tensor", lambda value, name: torch.empty_like(value), _all_reduced
)


def sum_without_gradient(value: Tensor, name: str) -> Tensor:
    """The sum over the processes of the group called ``name``, of a tensor of one shape, as a constant."""
    return _sum(value, name)


class _SumOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, name):
        ctx.name = name
        return _sum(value, name)

    @staticmethod
    def backward(ctx, upstream):
        return _sum(upstream, ctx.name), None


def sum_of_all(joined: Joined, value: Tensor) -> Tensor:
    """The sum over processes of a tensor of one shape, in all of them; its gradient is the sum of theirs."""
    return _SumOfAll.apply(value, joined.name)


def _largest(value: Tensor, name: str) -> Tensor:
    with named("largest_of_all", "the maximum over processes", name):
        return all_reduce(value, group_called(name), "max").clone()


_largest_op = define_composite(
    "ranks_largest", "(Tensor value, str name) -> Tensor", lambda value, _: torch.empty_like(value), _largest
)


def largest_of_all(joined: Joined, value: Tensor) -> Tensor:
    """The largest over processes of each element of a tensor of one shape, in all of them; a constant."""
    return _largest_op(value, joined.name)


def _class_sums(v: Tensor, v_id: Tensor, own_id: Tensor, counts: Tensor, transport: str, name: str) -> Tensor:
    """One part after the other: its class sums, found by sorting, are looked up by the own ids."""
    ids = own_id.sort()[0]
    sums = v.new_zeros((len(ids), *v.shape[1:]))  # of each id at its first place among the sorted ones

    def visit(start: int, columns: list[Tensor]) -> None:
        part, part_id = columns
        at = torch.searchsorted(ids, part_id).clamp_max(len(ids) - 1)
        known = (ids[at] == part_id)[:, None]
        sums.index_put_((at,), torch.where(known, part, 0), accumulate=True)

    Route("class_sums", transport, counts.tolist(), name).visit([v, v_id], visit)
    return sums[torch.searchsorted(ids, own_id)]


_sums = define_composite(
    "ranks_class_sums",
    "(Tensor v, Tensor v_id, Tensor own_id, Tensor counts, str transport, str name) -> Tensor",
    lambda v, v_id, own_id, *_: v.new_empty((own_id.shape[0], *v.shape[1:])),
    _class_sums,
)


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, v_id, own_id, counts, transport, name):
        ctx.save_for_backward(v_id, own_id, counts)
        ctx.transport, ctx.name = transport, name
        return _sums(v, v_id, own_id, counts, transport, name)

    @staticmethod
    def backward(ctx, upstream):
        v_id, own_id, counts = ctx.saved_tensors
        return _sums(upstream, own_id, v_id, counts, ctx.transport, ctx.name), *(None,) * 5


def class_sums_of_all(joined: Joined, v: Tensor, v_id: Tensor, own_id: Tensor | None = None) -> Tensor:
    """Sums (N, C) of the rows v (N, C) of all processes with the id of each own row.

    v_id and own_id are (N,) integers; own_id is v_id unless given. Every process has as many rows on both sides as
    ``joined.counts`` says.
    """
    own_id = v_id if own_id is None else own_id
    return _ClassSums.apply(v, v_id, own_id.view_as(own_id), *joined.route())
