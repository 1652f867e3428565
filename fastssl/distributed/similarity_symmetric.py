"""The masked similarity log-sum-exp of the rows of all processes against themselves: each pair of rows is multiplied once.

    lse_i = log sum_{j of any process : id_i != id_j} exp(scale <x_i, x_j>)                x (N_r, D) of process r,  s_ij = s_ji

A process compares its rows with each other, as one process does, and then with those of the W / 2 processes before it. Of each
block it sums rows and columns: the states of the rows stay, those of the columns go to the process that has them. In the backward
each block gives both of its sides the weights W_ij = g_i p_ij + g_j p_ji, and the gradient of the other side goes home. Where W is
even, the two processes that are W / 2 apart share their block.

U = 2 N M D FLOP for the N own rows and the M rows of all: forward U / 2, backward 3U / 2 (2U on a GPU).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import similarity as own_block
from fastssl.ops import similarity_cross as other_block
from fastssl.ops._register import define_composite, first_derivative_only, new_accumulator, save, saved
from fastssl.ops.similarity import scale_gradient, split_scalar

from .ranks import Joined
from .states import State, unit_of
from .travel import Route, added, pieces

_OPERANDS = "Tensor x, float scale, Tensor? scale_factor, Tensor x_id"
_ROUTE = "Tensor counts, str transport, str name"


def _forward(x, scale, scale_factor, x_id, keep, counts, transport, name):
    unit, route = unit_of(x), Route("similarity_lse", transport, counts.tolist(), name)
    first = route.starts[route.rank]
    _, _, state, peak = own_block._fwd(x, None, scale, scale_factor, x_id, None, None, None)
    rows = State.of(state, peak, first).with_a_top(unit)

    def visit(start: int, columns: list[Tensor], piece: slice) -> list[Tensor]:
        part, part_id = columns
        n = piece.stop - piece.start
        *_, state, peak = other_block._fwd(x[piece], part, scale, scale_factor, x_id[piece], part_id, None, 0)
        seen = State.of(state[:, :n], peak[:n], start).with_a_top(unit)
        for whole, some in zip(rows, rows.cut(piece).joined(seen, unit), strict=True):
            whole[piece] = some
        return list(State.of(state[:, n:], peak[n:], first + piece.start).with_a_top(unit))

    def joined(one: list[Tensor], two: list[Tensor]) -> list[Tensor]:
        return list(State(*one).joined(State(*two), unit))

    kept = route.gathered([x, x_id]) if transport == "gather" else []
    route.collect_pairs([x, x_id], visit, list(rows), State.of_nothing(x, 1), kept, joined)
    return rows.lse(unit), rows.stacked(), rows.peak, kept if keep else []


def _fake_forward(x, scale, scale_factor, x_id, keep, counts, transport, name):
    n, m = x.shape[0], x.shape[0] * counts.shape[0]
    kept = [t.new_empty((m, *t.shape[1:])) for t in (x, x_id)] if keep and transport == "gather" else []
    return new_accumulator(x, n), new_accumulator(x, 2, n), x.new_empty(n, dtype=torch.int64), kept


def _backward(dlse, state, peak, kept, x, scale, scale_factor, x_id, need, counts, transport, name):
    route, rows, (need_x, need_scale) = Route("similarity_lse", transport, counts.tolist(), name), State(*state, peak), need
    first, wanted = route.starts[route.rank], (need_x, need_x, need_scale)
    own = (x, None, scale, scale_factor, x_id, None, None, (need_x, False, False, need_scale))
    dx, _, _, dscale = own_block._bwd(dlse, state, rows.peak_in(first, len(x)), *own)
    dx = dx.to(new_accumulator(x, 0).dtype)

    def visit(start: int, columns: list[Tensor], piece: slice) -> list[Tensor]:
        part, part_id, g, *of_part = columns
        of_columns = State(*of_part)
        sums: list[Tensor] = []
        for sub in pieces(x[piece], transport):
            some = slice(piece.start + sub.start, piece.start + sub.stop)
            both = torch.cat([state[:, some], of_columns.stacked()], 1)
            seen_at = rows.cut(some).peak_in(start, len(part))
            peaks = torch.cat([seen_at, of_columns.peak_in(first + some.start, some.stop - some.start)])
            sides = (x[some], part, scale, scale_factor, x_id[some], part_id, wanted)
            mine, other, dots = other_block._bwd(dlse[some], g, both, peaks, new_accumulator(x, 0, len(part)), *sides)
            if need_x:
                dx[some] += mine
            if need_scale:
                dscale.add_(dots)
            sums = added(sums, [other] if need_x else [], like)
        return sums

    like = [dx.new_zeros((1, x.shape[1]))] if need_x else []
    route.collect_pairs([x, x_id, dlse, *rows], visit, [dx] if need_x else [], like, kept)
    return dx.to(x.dtype), dscale


def _fake_backward(dlse, state, peak, kept, x, scale, scale_factor, x_id, need, counts, transport, name):
    return x.new_empty(x.shape if need[0] else (0,)), (new_accumulator(x) if need[1] else new_accumulator(x, 0))


_fwd = define_composite(
    "ranks_similarity_symmetric_fwd",
    f"({_OPERANDS}, bool keep, {_ROUTE}) -> (Tensor, Tensor, Tensor, Tensor[])",
    _fake_forward,
    _forward,
)
_bwd = define_composite(
    "ranks_similarity_symmetric_bwd",
    f"(Tensor dlse, Tensor state, Tensor peak, Tensor[] kept, {_OPERANDS}, bool[2] need, {_ROUTE}) -> (Tensor, Tensor)",
    _fake_backward,
    _backward,
)


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, keep, counts, transport, name, *flat):
        x, scale, scale_factor, x_id = flat
        lse, state, peak, kept = _fwd(*flat, keep, counts, transport, name)
        save(ctx, state, peak, x, scale_factor, x_id, counts, *kept)
        ctx.scale, ctx.op, ctx.transport, ctx.name = scale, op, transport, name
        return lse

    @staticmethod
    @first_derivative_only("similarity_lse")
    def backward(ctx, dlse):
        state, peak, x, scale_factor, x_id, counts, *kept = saved(ctx)
        want_x, _, want_scale, _ = ctx.needs_input_grad[5:]
        operands, route = (x, ctx.scale, scale_factor, x_id), (counts, ctx.transport, ctx.name)
        dx, dscale = _bwd(dlse.contiguous(), state, peak, kept, *operands, (want_x, want_scale), *route)
        dscale = scale_gradient(dscale, ctx.scale, scale_factor) if want_scale else None
        return *(None,) * 5, dx if want_x else None, None, dscale, None


def similarity_lse_symmetric(joined: Joined, x: Tensor, scale: float | Tensor, x_id: Tensor) -> Tensor:
    """lse (N,) of the own rows x (N, D) over the rows of all processes of other ids; checked operands."""
    scale_factor, scale = split_scalar(scale, x)
    flat = (x, scale, scale_factor, x_id)
    wanted = torch.is_grad_enabled() and (x.requires_grad or (scale_factor is not None and scale_factor.requires_grad))
    return _Symmetric.apply(joined.op, joined.keep, *joined.route(), *flat) if wanted else _fwd(*flat, False, *joined.route())[0]
