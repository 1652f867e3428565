"""The masked similarity log-sum-exp over the columns of all processes.

    lse_i = log sum_r sum_{j of process r : x_id_i != y_id_j} exp(scale <x_i, y_j> + y_bias_j)        x (N, D), y (N_r, D)

The columns come as ``travel.py`` brings them, part by part. Each part is one call of the kernels of ``similarity_lse``, and the
states of the parts are joined as in ``states.py``. The backward goes the same way: it takes each weight from the joined state, adds
up the gradient of the own rows, and sends the gradients of the columns home. With a limit (N,) the kernels are those of
``similarity_limited``, which leave out the columns whose logit exceeds it.

U = 2 N M D FLOP for the N own rows and the M columns of all: forward U, backward 3U to 4U. Where no column needs a gradient, one
sweep of 2U also gives the gradient of the rows, and nothing is sent in the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.checks import savable
from fastssl.ops import similarity as local
from fastssl.ops import similarity_limited as limited
from fastssl.ops._operands import Similarity, factor_of
from fastssl.ops._register import define_composite, distinct, first_derivative_only, new_accumulator, refuse_transforms, save, saved

from .ranks import Joined
from .similarity_symmetric import similarity_lse_symmetric
from .states import State, unit_of
from .travel import Route, added, pieces

_OPERANDS = "Tensor x, Tensor y, float scale, Tensor? scale_factor, Tensor? x_id, Tensor? y_id, Tensor? y_bias"
_ROUTE = "Tensor counts, str transport, str name"


def _columns(operands: Similarity) -> list[Tensor]:
    return [t for t in (operands.y, operands.y_id, operands.y_bias) if t is not None]


def _with_columns(operands: Similarity, columns: list[Tensor]) -> Similarity:
    """The own rows with a part of the columns of all processes."""
    rest = iter(columns[1:])
    y_id = None if operands.y_id is None else next(rest)
    return operands._replace(y=columns[0], y_id=y_id, y_bias=None if operands.y_bias is None else next(rest))


def _forward(*flat):
    operands, (limit, keep, counts, transport, name) = Similarity(*flat[:8]), flat[8:]
    x, threshold = operands.x, operands.threshold
    joined: State | None = None
    ranks, whole, unit = local.new_rank(x, threshold).zero_(), None, unit_of(x)

    def visit(start: int, columns: list[Tensor]) -> None:
        nonlocal joined, whole
        part = _with_columns(operands, columns)
        whole, rank, state, peak = local._fwd(*part) if limit is None else limited._fwd(*part, limit)
        ranks.add_(rank)
        seen = State.of(state, peak, start)
        if not single:
            seen = seen.with_a_top(unit)
        joined = seen if joined is None else joined.joined(seen, unit)

    single = transport == "gather"
    kept = Route("similarity_lse", transport, counts.tolist(), name).visit(_columns(operands), visit)
    assert joined is not None
    lse = whole if single else joined.lse(unit)
    return lse, ranks, joined.stacked(), joined.peak, kept if keep else []


def _fake_forward(*flat):
    operands, (_, keep, counts, transport, _) = Similarity(*flat[:8]), flat[8:]
    x, n, m = operands.x, operands.x.shape[0], operands.y.shape[0] * counts.shape[0]
    kept = []
    if keep and transport == "gather":
        kept = [t.new_empty((m, *t.shape[1:])) for t in _columns(operands)]
    return (
        new_accumulator(x, n),
        local.new_rank(x, operands.threshold),
        new_accumulator(x, 2, n),
        x.new_empty(n, dtype=torch.int64),
        kept,
    )


def _backward(dlse, state, peak, kept, *flat):
    operands, (limit, need, counts, transport, name) = Similarity(*flat[:7]), flat[7:]
    x, y, y_bias, of_rows = operands.x, operands.y, operands.y_bias, State(state[0], state[1], peak)
    need_x, need_y, need_bias, need_scale = need
    dx = new_accumulator(x, *x.shape).zero_() if need_x else new_accumulator(x, 0)
    dscale = new_accumulator(x).zero_()

    def visit(start: int, columns: list[Tensor]) -> list[Tensor]:
        part = _with_columns(operands, columns)
        peaks = of_rows.peak_in(start, len(part.y))
        sums: list[Tensor] = []
        for piece in pieces(x, transport):
            arguments = part.part(piece, slice(None))[:7]
            of_piece = (dlse[piece], state[:, piece].contiguous(), peaks[piece])
            if limit is None:
                own, other, bias, dots = local._bwd(*of_piece, *arguments, need)
            else:
                own, other, bias, dots = limited._bwd(*of_piece, *arguments, limit[piece], need)
            if need_x:
                dx[piece] += own
            if need_scale:
                dscale.add_(dots)
            made = [t for t, wanted in ((other, need_y), (bias, need_bias)) if wanted]
            sums = added(sums, made, like)
        return sums

    like = [new_accumulator(x, 0, x.shape[1])] if need_y else []
    like += [new_accumulator(x, 0)] if need_bias else []
    route = Route("similarity_lse", transport, counts.tolist(), name)
    home = route.collect(_columns(operands), visit, like, kept)
    dy = home[0].to(y.dtype) if need_y else y.new_empty(0)
    dbias = home[-1].to(y_bias.dtype) if need_bias else new_accumulator(x, 0)
    return dx.to(x.dtype), dy, dbias, dscale if need_scale else new_accumulator(x, 0)


def _fake_backward(dlse, state, peak, kept, *flat):
    (x, y, *_, y_bias), need = flat[:7], flat[8]
    dbias = y_bias.new_empty(y_bias.shape) if need[2] else new_accumulator(x, 0)
    dx, dy = (t.new_empty(t.shape if wanted else (0,)) for t, wanted in ((x, need[0]), (y, need[1])))
    return dx, dy, dbias, new_accumulator(x) if need[3] else new_accumulator(x, 0)


def _one_pass(*flat):
    operands, (counts, transport, name) = Similarity(*flat[:8]), flat[8:]
    x, threshold = operands.x, operands.threshold
    lse, ranks = new_accumulator(x, len(x)).fill_(-torch.inf), local.new_rank(x, threshold).zero_()
    mean = new_accumulator(x, *x.shape).zero_()

    def visit(start: int, columns: list[Tensor]) -> None:
        of_part, part_mean, rank = local._one_pass(*_with_columns(operands, columns))
        ranks.add_(rank)
        both = torch.logaddexp(lse, of_part)
        shift = torch.where(both == -torch.inf, 0.0, both)
        mean.mul_(torch.exp(lse - shift)[:, None]).add_(part_mean.mul_(torch.exp(of_part - shift)[:, None]))
        lse.copy_(both)

    Route("similarity_lse", transport, counts.tolist(), name).visit(_columns(operands), visit)
    return lse, mean, ranks


def _fake_one_pass(*flat):
    x, threshold = flat[0], flat[7]
    return new_accumulator(x, x.shape[0]), new_accumulator(x, *x.shape), local.new_rank(x, threshold)


_fwd = define_composite(
    "ranks_similarity_fwd",
    f"({_OPERANDS}, Tensor? threshold, Tensor? limit, bool keep, {_ROUTE}) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _fake_forward,
    _forward,
)
_bwd = define_composite(
    "ranks_similarity_bwd",
    f"(Tensor dlse, Tensor state, Tensor peak, Tensor[] kept, {_OPERANDS}, Tensor? limit, bool[4] need, {_ROUTE}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    _backward,
)
_pass = define_composite(
    "ranks_similarity_one_pass",
    f"({_OPERANDS}, Tensor? threshold, {_ROUTE}) -> (Tensor, Tensor, Tensor)",
    _fake_one_pass,
    _one_pass,
)


class _TwoSided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, keep, counts, transport, name, *flat):
        x, y, scale, scale_factor, x_id, y_id, y_bias, _, limit = flat
        lse, rank, state, peak, kept = _fwd(*flat, keep, counts, transport, name)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)  # no zeros for the rank
        save(ctx, state, peak, x, y, scale_factor, x_id, y_id, y_bias, limit, counts, *kept)
        ctx.scale, ctx.op, ctx.transport, ctx.name = scale, op, transport, name
        return lse, rank

    @staticmethod
    @first_derivative_only("similarity_lse")
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 14
        state, peak, x, y, scale_factor, x_id, y_id, y_bias, limit, counts, *kept = saved(ctx)
        want_x, want_y, _, want_scale, _, _, want_bias, *_ = ctx.needs_input_grad[5:]
        need = (want_x, want_y, want_bias, want_scale)
        operands = (x, y, ctx.scale, scale_factor, x_id, y_id, y_bias)
        dx, dy, dbias, dscale = _bwd(dlse, state, peak, kept, *operands, limit, need, counts, ctx.transport, ctx.name)
        dscale = local.scale_gradient(dscale, ctx.scale, scale_factor) if want_scale else None
        gradients = (dx if want_x else None, dy if want_y else None, None, dscale, None, None, dbias if want_bias else None)
        return (*(None,) * 5, *gradients, None, None)


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, counts, transport, name, *flat):
        x, _, scale, scale_factor, *_ = flat
        lse, mean, rank = _pass(*flat, counts, transport, name)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)
        save(ctx, mean, x, scale_factor)
        ctx.scale, ctx.op = scale, op
        return lse, rank

    @staticmethod
    @first_derivative_only("similarity_lse")
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 12
        mean, x, scale_factor = saved(ctx)
        _, _, _, _, want_x, _, _, want_scale, *_ = ctx.needs_input_grad
        dx = dscale = None
        if want_x:
            dx = (mean * (dlse * factor_of(ctx.scale, scale_factor, mean.dtype))[:, None]).to(x.dtype)
        if want_scale:
            dots = (mean * x.to(mean.dtype)).sum(1)
            dscale = local.scale_gradient((dots * dlse).sum(), ctx.scale, scale_factor)
        return *(None,) * 4, dx, None, None, dscale, *(None,) * 4


def similarity_lse_rank(
    joined: Joined,
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    x_id: Tensor | None = None,
    y_id: Tensor | None = None,
    y_bias: Tensor | None = None,
    threshold: Tensor | None = None,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``similarity_lse_rank`` of ``ops`` with the columns y of all processes, of which each has ``joined.counts``.

    lse (N,) of the own rows, and the rank (N,) of a threshold. The gradient of y is the sum over processes. With a limit (N,) it
    is ``similarity_limited`` of ``ops``. Where y is x, and y_id is x_id, each pair of rows is multiplied once.
    """
    op = joined.op
    local.check_sides(op, x, y, scale, x_id, y_id)
    refuse_transforms(op, x, y, scale, y_bias)
    if y is x and x_id is not None and y_id is x_id and y_bias is None and threshold is None and limit is None:
        return similarity_lse_symmetric(joined, x, scale, savable(x_id)), local.new_rank(x, None)
    x_id, y_id, y_bias, threshold, limit = map(savable, (x_id, y_id, y_bias, threshold, limit))
    threshold, limit = (None if t is None else t.detach() for t in (threshold, limit))
    scale_factor, scale = local.split_scalar(scale, x)
    flat = (x, distinct(y, x), scale, scale_factor, x_id, distinct(y_id, x_id), y_bias, threshold)
    column_gradient = y.requires_grad or (y_bias is not None and y_bias.requires_grad)
    row_gradient = x.requires_grad or (scale_factor is not None and scale_factor.requires_grad)
    if torch.is_grad_enabled() and (column_gradient or (limit is not None and row_gradient)):
        return _TwoSided.apply(op, joined.keep, *joined.route(), *flat, limit)
    if torch.is_grad_enabled() and row_gradient:
        return _OnePass.apply(op, *joined.route(), *flat)
    return _fwd(*flat, limit, False, *joined.route())[:2]
