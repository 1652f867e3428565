"""Row and column log-sum-exp over all processes, from one sweep of each process's rows.

    s_ij  = scale <x_i, y_j>                       x_i of this process, y_j of any; both sides have N_r rows in process r
    row_i = log sum_{j : x_id_i != y_id_j} exp(s_ij)        column_j = log sum_{i of all processes : ...} exp(s_ij)

The states of the rows are complete when all columns have come by. What a process knows of the columns that it saw goes home to the
process that has them, where the states of all processes are joined. In the backward the columns come with their states and their
upstream gradients.

U = 2 N M D FLOP for the N own rows and the M columns of all: forward U, backward 3U (4U on a GPU). ``similarity_lse`` in both
directions would take twice the forward and twice the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.checks import savable
from fastssl.ops import similarity_cross as local
from fastssl.ops._operands import cut
from fastssl.ops._register import define_composite, distinct, first_derivative_only, new_accumulator, refuse_transforms, save, saved
from fastssl.ops.similarity import check_sides, new_rank, scale_gradient, split_scalar

from .ranks import Joined
from .states import State, unit_of
from .travel import Route, added, pieces

_OPERANDS = "Tensor x, Tensor y, float scale, Tensor? scale_factor, Tensor? x_id, Tensor? y_id"
_ROUTE = "Tensor counts, str transport, str name"


def _columns(y: Tensor, y_id: Tensor | None) -> list[Tensor]:
    return [y] if y_id is None else [y, y_id]


def _forward(*flat):
    (x, y, scale, scale_factor, x_id, y_id, threshold), (keep, counts, transport, name) = flat[:7], flat[7:]
    n, unit, ranks = len(x), unit_of(x), new_rank(x, threshold).zero_()
    route = Route("similarity_cross", transport, counts.tolist(), name)
    rows: State | None = None

    def visit(start: int, columns: list[Tensor]) -> list[Tensor]:
        nonlocal rows
        part, part_id = columns[0], None if y_id is None else columns[1]
        _, _, rank, _, state, peak = local._fwd(x, part, scale, scale_factor, x_id, part_id, threshold, 0)
        ranks.add_(rank)
        seen = State.of(state[:, :n], peak[:n], start).with_a_top(unit)
        rows = seen if rows is None else rows.joined(seen, unit)
        return list(State.of(state[:, n:], peak[n:], route.starts[route.rank]).with_a_top(unit))

    def joined(one: list[Tensor], two: list[Tensor]) -> list[Tensor]:
        return list(State(*one).joined(State(*two), unit))

    none = new_accumulator(x, 0)
    like = [none, none, x.new_empty(0, dtype=torch.int64)]
    kept: list[Tensor] = []
    if transport == "gather":
        kept = route.gathered(_columns(y, y_id))
    columns = State(*route.collect(_columns(y, y_id), visit, like, kept, joined))
    assert rows is not None
    states = rows.stacked(), rows.peak, columns.stacked(), columns.peak
    return rows.lse(unit), columns.lse(unit), ranks, *states, kept if keep else []


def _fake_forward(*flat):
    (x, y, *_, y_id, threshold), (keep, counts, transport, _) = flat[:7], flat[7:]
    n, m = x.shape[0], y.shape[0] * counts.shape[0]
    kept = [t.new_empty((m, *t.shape[1:])) for t in _columns(y, y_id)] if keep and transport == "gather" else []
    state, peak = new_accumulator(x, 2, n), x.new_empty(n, dtype=torch.int64)
    states = state, peak, torch.empty_like(state), torch.empty_like(peak)
    return new_accumulator(x, n), new_accumulator(x, n), new_rank(x, threshold), *states, kept


def _backward(drow, dcolumn, row_state, row_peak, column_state, column_peak, kept, x, y, *rest):
    scale, scale_factor, x_id, y_id, need, counts, transport, name = rest
    of_rows = State(row_state[0], row_state[1], row_peak)
    need_x, need_y, need_scale = need
    dx = new_accumulator(x, *x.shape).zero_() if need_x else new_accumulator(x, 0)
    dscale = new_accumulator(x).zero_()
    route = Route("similarity_cross", transport, counts.tolist(), name)
    first_row = route.starts[route.rank]
    like = [new_accumulator(x, 0, x.shape[1])] if need_y else []

    def visit(start: int, columns: list[Tensor]) -> list[Tensor]:
        part, *ids = columns[:-4]
        g, top, total, peak = columns[-4:]
        part_id, of_columns, m = ids[0] if ids else None, State(top, total, peak), len(part)
        peaks = of_rows.peak_in(start, m)
        sums: list[Tensor] = []
        for piece in pieces(x, transport):
            state = torch.cat([row_state[:, piece], of_columns.stacked()], 1)
            peak = torch.cat([peaks[piece], of_columns.peak_in(first_row + piece.start, piece.stop - piece.start)])
            arguments = (x[piece], part, scale, scale_factor, cut(x_id, piece), part_id, need)
            own, other, dots = local._bwd(drow[piece], g, state, peak, new_accumulator(x, 0, m), *arguments)
            if need_x:
                dx[piece] += own
            if need_scale:
                dscale.add_(dots)
            sums = added(sums, [other] if need_y else [], like)
        return sums

    columns = [*_columns(y, y_id), dcolumn, *column_state.unbind(), column_peak]
    home = route.collect(columns, visit, like, kept)
    dy = home[0].to(y.dtype) if need_y else y.new_empty(0)
    return dx.to(x.dtype), dy, dscale if need_scale else new_accumulator(x, 0)


def _fake_backward(drow, dcolumn, row_state, row_peak, column_state, column_peak, kept, x, y, *rest):
    need = rest[4]
    dx, dy = (t.new_empty(t.shape if wanted else (0,)) for t, wanted in zip((x, y), need[:2], strict=True))
    return dx, dy, new_accumulator(x) if need[2] else new_accumulator(x, 0)


_fwd = define_composite(
    "ranks_similarity_cross_fwd",
    f"({_OPERANDS}, Tensor? threshold, bool keep, {_ROUTE}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _fake_forward,
    _forward,
)
_bwd = define_composite(
    "ranks_similarity_cross_bwd",
    "(Tensor drow, Tensor dcolumn, Tensor row_state, Tensor row_peak, Tensor column_state, Tensor column_peak, Tensor[] kept, "
    f"{_OPERANDS}, bool[3] need, {_ROUTE}) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    _backward,
)


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, keep, counts, transport, name, *flat):
        x, y, scale, scale_factor, x_id, y_id, _ = flat
        row, column, rank, *states, kept = _fwd(*flat, keep, counts, transport, name)
        ctx.mark_non_differentiable(rank)
        save(ctx, *states, x, y, scale_factor, x_id, y_id, counts, *kept)
        ctx.scale, ctx.op, ctx.transport, ctx.name = scale, op, transport, name
        return row, column, rank

    @staticmethod
    @first_derivative_only("similarity_cross")
    def backward(ctx, drow, dcolumn, _):
        tensors = saved(ctx)
        states, (x, y, scale_factor, x_id, y_id, counts, *kept) = tensors[:4], tensors[4:]
        want_x, want_y, _, want_scale, *_ = ctx.needs_input_grad[5:]
        operands = (x, y, ctx.scale, scale_factor, x_id, y_id)
        need = (want_x, want_y, want_scale)
        dx, dy, dscale = _bwd(drow, dcolumn, *states, kept, *operands, need, counts, ctx.transport, ctx.name)
        dscale = scale_gradient(dscale, ctx.scale, scale_factor) if want_scale else None
        return *(None,) * 5, dx if want_x else None, dy if want_y else None, None, dscale, *(None,) * 3


def similarity_cross(
    joined: Joined,
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    x_id: Tensor,
    y_id: Tensor,
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``similarity_cross`` of ``ops`` for x and y (N, D), of which every process has as many rows as ``joined.counts`` says.

    row (N,) of the own rows over all columns, column (N,) of the own columns over all rows, and the rank (N,) of a threshold. The
    gradients of both sides are sums over processes.
    """
    op = joined.op
    check_sides(op, x, y, scale, x_id, y_id)
    refuse_transforms(op, x, y, scale)
    x_id, y_id, threshold = map(savable, (x_id, y_id, threshold))
    threshold = None if threshold is None else threshold.detach()
    scale_factor, scale = split_scalar(scale, x)
    flat = (x, distinct(y, x), scale, scale_factor, x_id, distinct(y_id, x_id), threshold)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, scale_factor))
    return _Cross.apply(op, joined.keep, *joined.route(), *flat) if wanted else _fwd(*flat, False, *joined.route())[:3]
