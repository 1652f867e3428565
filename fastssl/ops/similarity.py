"""Contract of the masked similarity log-sum-exp, the op under every softmax loss.

    s_ij  = scale * <x_i, y_j> + y_bias_j                                x (N, D), y (M, D)
    lse_i = log sum_{j : x_id_i != y_id_j} exp(s_ij)                     -inf where every column is excluded

With upstream gradient g_i and p_ij = exp(s_ij - lse_i):

    dx_i = scale g_i sum_j p_ij y_j    dy_j = scale sum_i g_i p_ij x_i    dbias_j = sum_i g_i p_ij
    dscale = sum_i g_i sum_j p_ij <x_i, y_j>

Four schedules, U = 2 N M D FLOP:

    symmetric   y is x                   forward U/2 to U, backward 3U/2 to 2U: the weight g_i p_ij + g_j p_ji is symmetric
    two-sided   y or y_bias needs grad   forward U, backward 3U to 4U
    one-pass    only x or scale does     forward 2U, also emits mean_i = sum_j p_ij y_j; backward 0, nothing of y is saved
    no-grad     nothing does             forward U

Saved for the backward: x, y and of each row (top, total, peak): the largest logit, the sum of exp(s - top), and where the largest
logit lies (one-pass: mean). No N x M matrix exists in any of them.

The backward makes each s_ij anew, and a product of another shape, or the vendor's choice of another algorithm, gives it other bits.
So p_ij = min(1, exp(s_ij - top_i)) / total_i, and the logit at ``peak`` counts as top_i itself: a row that one logit dominates has
the weight 1 there, however large the logits are, and every other weight is off by the rounding of its logit, as eager's is.

The forward sweeps can also count: rank_i = #{j : x_id_i != y_id_j, s_ij > threshold_i}. With the positive's logit as the
threshold that is the positive's rank among the negatives, hence acc@1 and acc@5, without logits.
"""

import torch
from torch import Tensor

from fastssl.checks import FLOATS, INTEGERS, check_like, check_matrix, check_scalar, check_vector, savable, traced, widest

from ._register import define_op, distinct, first_derivative_only, new_accumulator, refuse_transforms

_OP = "similarity_lse"
_COMMON = "Tensor x, Tensor? y, float scale, Tensor? scale_factor, Tensor? x_id, Tensor? y_id, Tensor? y_bias"


def new_rank(x: Tensor, threshold: Tensor | None) -> Tensor:
    """Empty int32 (N,), or (0,) where nothing is counted."""
    return x.new_empty(0 if threshold is None else x.shape[0], dtype=torch.int32)


def _fake_fwd(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold):
    n = x.shape[0]
    return new_accumulator(x, n), new_rank(x, threshold), new_accumulator(x, 2, n), x.new_empty(n, dtype=torch.int32)


def _fake_one_pass(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold):
    return new_accumulator(x, x.shape[0]), new_accumulator(x, *x.shape), new_rank(x, threshold)


def _fake_bwd(dlse, state, peak, x, y, scale, scale_factor, x_id, y_id, y_bias, need):
    dx = x.new_empty(x.shape if need[0] else (0,))
    dy = x.new_empty(y.shape if need[1] and y is not None else (0,))
    dbias = new_accumulator(x, 0) if y_bias is None else y_bias.new_empty(y_bias.shape if need[2] else (0,))
    return dx, dy, dbias, (new_accumulator(x) if need[3] else new_accumulator(x, 0))


_fwd = define_op("similarity_fwd", f"({_COMMON}, Tensor? threshold) -> (Tensor, Tensor, Tensor, Tensor)", _fake_fwd, "similarity")
_one_pass = define_op(
    "similarity_one_pass", f"({_COMMON}, Tensor? threshold) -> (Tensor, Tensor, Tensor)", _fake_one_pass, "similarity"
)
_bwd = define_op(
    "similarity_bwd",
    f"(Tensor dlse, Tensor state, Tensor peak, {_COMMON}, bool[4] need) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_bwd,
    "similarity",
)


def split_scalar(value: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    """A checked number or tensor as an op takes it: (tensor, 1), or (None, number)."""
    value = savable(traced(value, like))
    return (value, 1.0) if isinstance(value, Tensor) else (None, float(value))


def scale_gradient(dscale: Tensor, scale: float, scale_factor: Tensor) -> Tensor:
    return (dscale * scale).to(scale_factor.dtype).reshape(scale_factor.shape)


class _TwoSided(torch.autograd.Function):
    """Symmetric (y is None) and two-sided: the backward recomputes the similarities tile by tile."""

    @staticmethod
    def forward(ctx, x, y, scale, scale_factor, x_id, y_id, y_bias, threshold, op):
        lse, rank, state, peak = _fwd(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)  # no zeros for the rank
        ctx.save_for_backward(state, peak, x, y, scale_factor, x_id, y_id, y_bias)
        ctx.scale, ctx.op = scale, op
        return lse, rank

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 9
        state, peak, x, y, scale_factor, x_id, y_id, y_bias = ctx.saved_tensors
        wants = ctx.needs_input_grad
        need = (wants[0], wants[1], wants[6], wants[3])
        dx, dy, dbias, dscale = _bwd(dlse, state, peak, x, y, ctx.scale, scale_factor, x_id, y_id, y_bias, need)
        return (
            dx if need[0] else None,
            dy if need[1] else None,
            None,
            scale_gradient(dscale, ctx.scale, scale_factor) if need[3] else None,
            None,
            None,
            dbias if need[2] else None,
            None,
            None,
        )


class _OnePass(torch.autograd.Function):
    """y and y_bias are constants: the forward leaves mean_i, and the backward never sees y."""

    @staticmethod
    def forward(ctx, x, y, scale, scale_factor, x_id, y_id, y_bias, threshold, op):
        lse, mean, rank = _one_pass(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)  # no zeros for the rank
        ctx.save_for_backward(mean, x, scale_factor)
        ctx.scale, ctx.op = scale, op
        return lse, rank

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 9
        mean, x, scale_factor = ctx.saved_tensors
        dx = dscale = None
        if ctx.needs_input_grad[0]:
            factor = ctx.scale if scale_factor is None else ctx.scale * scale_factor.reshape(()).to(mean.dtype)
            dx = (mean * (dlse * factor)[:, None]).to(x.dtype)
        if ctx.needs_input_grad[3]:
            dots = (mean * x.to(mean.dtype)).sum(1)
            dscale = scale_gradient((dots * dlse).sum(), ctx.scale, scale_factor)
        return dx, None, None, dscale, *(None,) * 5


def check_sides(op, x, y, scale, x_id, y_id) -> None:
    """x (N, D) and y (M, D) of one width, dtype and device, a finite scale, and ids for both sides or for neither."""
    check_matrix(op, "x", x, "N, D")
    check_matrix(op, "y", y, "M, D")
    check_like(op, "y", y, "x", x)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{op}: x and y must have the same width D, got {tuple(x.shape)} and {tuple(y.shape)}")
    check_scalar(op, "scale", scale, x)
    if x_id is None and y_id is None:
        return
    if x_id is None or (y_id is None and y is not x):
        missing, given = ("x_id", "y_id") if x_id is None else ("y_id", "x_id")
        raise ValueError(
            f"{op}: {given} was given without {missing}; excluding equal ids needs both (y_id may be left out when y is x)"
        )
    check_vector(op, "x_id", x_id, x.shape[0], INTEGERS, "x", x)
    if y_id is not None:
        check_vector(op, "y_id", y_id, y.shape[0], INTEGERS, "y", y)


def similarity_lse_rank(x, y, *, scale=1.0, x_id=None, y_id=None, y_bias=None, threshold=None, op=_OP) -> tuple[Tensor, Tensor]:
    """``similarity_lse`` and the rank (N,) int32 of ``threshold`` (N,), a constant, among each row's logits; (0,) without it."""
    check_sides(op, x, y, scale, x_id, y_id)
    if y_bias is not None:
        check_vector(op, "y_bias", y_bias, y.shape[0], FLOATS, "y", y)
    if threshold is not None:
        check_vector(op, "threshold", threshold, x.shape[0], FLOATS, "x", x)
        threshold = threshold.detach()
    refuse_transforms(op, x, y, scale, y_bias)
    x_id, y_id, y_bias, threshold = map(savable, (x_id, y_id, y_bias, threshold))
    factor, scale = split_scalar(scale, x)
    symmetric = y is x and (y_id is None or y_id is x_id)
    if symmetric:
        args = (x, None, scale, factor, x_id, None, y_bias, threshold)
    else:
        y_id = distinct(x_id if y_id is None else y_id, x_id)
        args = (x, distinct(y, x), scale, factor, x_id, y_id, y_bias, threshold)
    if not torch.is_grad_enabled():
        return _fwd(*args)[:2]
    column_gradient = y.requires_grad or (y_bias is not None and y_bias.requires_grad)
    row_gradient = x.requires_grad or (factor is not None and factor.requires_grad)
    if column_gradient or (symmetric and row_gradient):
        return _TwoSided.apply(*args, op)
    return _OnePass.apply(*args, op) if row_gradient else _fwd(*args)[:2]


def similarity_lse(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    x_id: Tensor | None = None,
    y_id: Tensor | None = None,
    y_bias: Tensor | None = None,
) -> Tensor:
    """Row-wise log-sum-exp of scaled similarities, equal ids excluded, without the (N, M) matrix.

    ``lse_i = log sum_{j: x_id_i != y_id_j} exp(scale * <x_i, y_j> + y_bias_j)``

    Args:
        x: (N, D) float32, bfloat16, float16 or float64.
        y: (M, D), the dtype and device of ``x``. Passing ``x`` itself selects the symmetric schedule, 2U to 3U FLOP in all.
        scale: number or one-element float tensor (1 / temperature); a tensor may need a gradient.
        x_id: (N,) integers. Column j is left out of row i where ``x_id[i] == y_id[j]``.
        y_id: (M,) integers; left out, with ``y is x``, it is ``x_id``.
        y_bias: (M,) float, added to the logits of each column.

    Returns:
        lse (N,), float32 (float64 for float64 input); ``-inf``, with gradient 0, for a row with every column excluded.

    Memory is O((N + M) D). Differentiable once in x, y, scale and y_bias. If neither ``y`` nor ``y_bias`` needs a
    gradient, nothing of ``y`` is kept for the backward, so it may be overwritten in place at once (a queue).

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device, or a non-finite scale.
        NotImplementedError: under torch.func transforms.
    """
    x, y = widest(savable(x), savable(y)) if y is not x else (savable(x),) * 2
    return similarity_lse_rank(x, y, scale=scale, x_id=x_id, y_id=y_id, y_bias=y_bias)[0]
