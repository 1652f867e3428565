"""Contract of the row and column log-sum-exp of one similarity matrix, both from one sweep: the op under CLIP.

    s_ij  = scale * <x_i, y_j>                                           x (N, D), y (M, D)
    row_i = log sum_{j : x_id_i != y_id_j} exp(s_ij)        column_j = log sum_{i : x_id_i != y_id_j} exp(s_ij)

With upstream gradients g (N,) of row and h (M,) of column:

    W_ij = g_i p_ij + h_j q_ij,  p the softmax of each row, q of each column
    dx = scale W y        dy = scale W^T x        dscale = sum_ij W_ij <x_i, y_j>

U = 2 N M D FLOP: forward U, backward 3U (4U where each side owns a sweep of its own, as on a GPU); no N x M matrix. Two calls
of ``similarity_lse`` would take 2U + 6U. Saved for the backward: x, y, (top, total, peak) of each row and each column as
``similarity_lse`` has it, and on a CPU the exponentials of as many rows as fit in ``KEEP_ELEMENTS``, or their logits where these
are not bounded: for them the backward takes 2U. Up to N = M = 4096 these are all.
"""

import torch
from torch import Tensor

from fastssl.checks import FLOATS, check_vector, savable

from ._register import define_op, distinct, first_derivative_only, gradient_dtype, new_accumulator, refuse_transforms, save, saved
from .similarity import check_sides, new_rank, scale_gradient, split_scalar

_OP = "similarity_cross"
KEEP_ELEMENTS = 1 << 24  # 64 MiB of float32
_COMMON = "Tensor x, Tensor y, float scale, Tensor? scale_factor, Tensor? x_id, Tensor? y_id"


def _fake_fwd(x, y, *rest):
    threshold, keep_rows = rest[-2:]
    kept = new_accumulator(x, keep_rows, y.shape[0])
    n, m = x.shape[0], y.shape[0]
    state, peak = new_accumulator(x, 2, n + m), x.new_empty(n + m, dtype=torch.int32)
    return new_accumulator(x, n), new_accumulator(x, m), new_rank(x, threshold), kept, state, peak


def _fake_bwd(drow, dcolumn, state, peak, kept, x, y, *rest):
    need = rest[-1]
    shapes = (t.shape if wanted else (0,) for t, wanted in zip((x, y), need[:2], strict=True))
    dx, dy = (x.new_empty(shape, dtype=gradient_dtype(x)) for shape in shapes)
    return dx, dy, (new_accumulator(x) if need[2] else new_accumulator(x, 0))


_fwd = define_op(
    "similarity_cross_fwd",
    f"({_COMMON}, Tensor? threshold, SymInt keep_rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_fwd,
    "similarity_cross",
)
_bwd = define_op(
    "similarity_cross_bwd",
    f"(Tensor drow, Tensor dcolumn, Tensor state, Tensor peak, Tensor kept, {_COMMON}, bool[3] need) -> (Tensor, Tensor, Tensor)",
    _fake_bwd,
    "similarity_cross",
)


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, *flat):
        x, y, scale, scale_factor, x_id, y_id, _ = flat
        keep_rows = min(x.shape[0], KEEP_ELEMENTS // y.shape[0]) if x.device.type == "cpu" else 0
        row, column, rank, kept, state, peak = _fwd(*flat, keep_rows)
        ctx.mark_non_differentiable(rank)
        save(ctx, state, peak, kept, x, y, scale_factor, x_id, y_id)
        ctx.scale, ctx.op = scale, op
        return row, column, rank

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, drow, dcolumn, _):
        *states, x, y, scale_factor, x_id, y_id = saved(ctx)
        _, want_x, want_y, _, want_scale, *_ = ctx.needs_input_grad
        need = (want_x, want_y, want_scale)
        dx, dy, dscale = _bwd(drow, dcolumn, *states, x, y, ctx.scale, scale_factor, x_id, y_id, need)
        return (
            None,
            dx.to(x.dtype) if want_x else None,
            dy.to(y.dtype) if want_y else None,
            None,
            scale_gradient(dscale, ctx.scale, scale_factor) if want_scale else None,
            *(None,) * 3,
        )


def similarity_cross(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    x_id: Tensor | None = None,
    y_id: Tensor | None = None,
    threshold: Tensor | None = None,
    op: str = _OP,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the rows and of the columns of ``scale * x @ y.T``, equal ids excluded, from one sweep.

    Args:
        x: (N, D) float32, bfloat16, float16 or float64.
        y: (M, D), the dtype and device of ``x``.
        scale: number or one-element float tensor; a tensor may need a gradient.
        x_id, y_id: (N,) and (M,) integers, both or neither: pair (i, j) is left out where ``x_id[i] == y_id[j]``.
        threshold: (N,) float, a constant.
        op: name in error messages.

    Returns:
        row (N,) and column (M,), float32 (float64 for float64), ``-inf`` where everything is excluded; rank (N,) int32, the
        number of logits of each row above its threshold, or (0,) without one. Differentiable once in x, y and scale.
    """
    check_sides(op, x, y, scale, x_id, y_id)
    if threshold is not None:
        check_vector(op, "threshold", threshold, x.shape[0], FLOATS, "x", x)
        threshold = threshold.detach()
    refuse_transforms(op, x, y, scale)
    x_id, y_id, threshold = map(savable, (x_id, y_id, threshold))
    scale_factor, scale = split_scalar(scale, x)
    flat = (x, distinct(y, x), scale, scale_factor, x_id, distinct(x_id if y_id is None else y_id, x_id), threshold)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, scale_factor))
    return _Cross.apply(op, *flat) if wanted else _fwd(*flat, 0)[:3]
