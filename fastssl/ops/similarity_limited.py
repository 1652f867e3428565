"""Contract of the masked similarity log-sum-exp below a limit of each row: the op under losses that drop false negatives.

    s_ij  = scale * <x_i, y_j> + y_bias_j                                x (N, D), y (M, D)
    lse_i = log sum_{j : x_id_i != y_id_j, s_ij <= limit_i} exp(s_ij)    -inf where no column is left

The limit (N,) is a constant, and a column above it counts neither in the forward nor in the backward. Gradients are those of
``similarity_lse`` over the columns that are left, p_ij = exp(s_ij - lse_i):

    dx_i = scale g_i sum_j p_ij y_j    dy_j = scale sum_i g_i p_ij x_i    dbias_j = sum_i g_i p_ij
    dscale = sum_i g_i sum_j p_ij <x_i, y_j>

A limit belongs to a row, so the weights are not symmetric where y is x. There are two schedules, U = 2 N M D FLOP: no-grad takes U,
and the two-sided one takes U forward and 3U to 4U backward. Saved for the backward: x, y, limit and of each row (top, total, peak),
as ``similarity_lse`` has them. No N x M matrix exists.

Which columns count is decided anew in the backward, because storing it would take a bit of each pair. Where a logit lies at its
limit but for the rounding of the product, the two decisions can differ. Then the gradient lacks one term of the row, or has one
more, which is what the loss itself does when such a logit moves by a unit in the last place. Two things hold all the same: every
weight is finite and at most 1, and the largest logit that counted in the forward counts in the backward too.
"""

import torch
from torch import Tensor

from fastssl.checks import FLOATS, check_vector, savable

from ._operands import SimilarityArguments
from ._register import define_op, distinct, first_derivative_only, gradient_dtype, new_accumulator, refuse_transforms, save, saved
from .similarity import check_sides, new_rank, scale_gradient, split_scalar

_OP = "similarity_limited"
_COMMON = "Tensor x, Tensor y, float scale, Tensor? scale_factor, Tensor? x_id, Tensor? y_id, Tensor? y_bias"


def _fake_fwd(x, *rest):
    threshold, n = rest[-2], x.shape[0]
    return new_accumulator(x, n), new_rank(x, threshold), new_accumulator(x, 2, n), x.new_empty(n, dtype=torch.int32)


def _fake_bwd(dlse, state, peak, x, y, *rest):
    y_bias, _, need = rest[-3:]
    shapes = (t.shape if wanted else (0,) for t, wanted in zip((x, y), need[:2], strict=True))
    dx, dy = (x.new_empty(shape, dtype=gradient_dtype(x)) for shape in shapes)
    dbias = new_accumulator(x, 0) if y_bias is None else y_bias.new_empty(y_bias.shape if need[2] else (0,))
    return dx, dy, dbias, (new_accumulator(x) if need[3] else new_accumulator(x, 0))


_fwd = define_op(
    "similarity_limited_fwd",
    f"({_COMMON}, Tensor? threshold, Tensor limit) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_fwd,
    "similarity_limited",
)
_bwd = define_op(
    "similarity_limited_bwd",
    f"(Tensor dlse, Tensor state, Tensor peak, {_COMMON}, Tensor limit, bool[4] need) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_bwd,
    "similarity_limited",
)


class _Limited(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, *flat):
        x, y, scale, scale_factor, x_id, y_id, y_bias, _, limit = flat
        lse, rank, state, peak = _fwd(*flat)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)  # no zeros for the rank
        save(ctx, state, peak, x, y, scale_factor, x_id, y_id, y_bias, limit)
        ctx.scale, ctx.op = scale, op
        return lse, rank

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 10
        state, peak, x, y, scale_factor, x_id, y_id, y_bias, limit = saved(ctx)
        _, want_x, want_y, _, want_scale, _, _, want_bias, *_ = ctx.needs_input_grad
        need = (want_x, want_y, want_bias, want_scale)
        dx, dy, dbias, dscale = _bwd(dlse, state, peak, x, y, ctx.scale, scale_factor, x_id, y_id, y_bias, limit, need)
        dscale = scale_gradient(dscale, ctx.scale, scale_factor) if want_scale else None
        dbias = dbias if want_bias else None
        dx, dy = dx.to(x.dtype) if want_x else None, dy.to(y.dtype) if want_y else None
        return None, dx, dy, None, dscale, None, None, dbias, None, None


def similarity_limited(
    x: Tensor,
    y: Tensor,
    limit: Tensor,
    *,
    scale: float | Tensor = 1.0,
    x_id: Tensor | None = None,
    y_id: Tensor | None = None,
    y_bias: Tensor | None = None,
    threshold: Tensor | None = None,
    op: str = _OP,
) -> tuple[Tensor, Tensor]:
    """``similarity_lse`` over the columns whose logit is at most ``limit``, and how many of them lie above ``threshold``.

    Args:
        x: (N, D) float32, bfloat16, float16 or float64.
        y: (M, D), the dtype and device of ``x``; may be ``x``.
        limit: (N,) float, a constant: column j is left out of row i where s_ij > limit_i. A NaN leaves nothing out.
        scale: number or one-element float tensor; a tensor may need a gradient.
        x_id, y_id: (N,) and (M,) integers, both or neither: column j is left out of row i where they are equal.
        y_bias: (M,) float, added to the logits of each column.
        threshold: (N,) float, a constant.
        op: name in error messages.

    Returns:
        lse (N,), float32 (float64 for float64), ``-inf`` with gradient 0 where no column is left; rank (N,) int32, the number of
        columns that count whose logit is above the threshold, or (0,) without one. Differentiable once in x, y, scale and y_bias.
    """
    check_sides(op, x, y, scale, x_id, y_id)
    if y_bias is not None:
        check_vector(op, "y_bias", y_bias, y.shape[0], FLOATS, "y", y)
    check_vector(op, "limit", limit, x.shape[0], FLOATS, "x", x)
    if threshold is not None:
        check_vector(op, "threshold", threshold, x.shape[0], FLOATS, "x", x)
    refuse_transforms(op, x, y, scale, y_bias)
    x_id, y_id, y_bias = map(savable, (x_id, y_id, y_bias))
    limit, threshold = savable(limit.detach()), savable(threshold if threshold is None else threshold.detach())
    scale_factor, scale = split_scalar(scale, x)
    y_id = distinct(x_id if y_id is None else y_id, x_id)
    arguments = SimilarityArguments(x, distinct(y, x), scale, scale_factor, x_id, y_id, y_bias, distinct(threshold, limit))
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, scale_factor, y_bias))
    return _Limited.apply(op, *arguments, limit) if wanted else _fwd(*arguments, limit)[:2]
