"""Contract of the masked similarity log-sum-exp, the op under every softmax loss.

    s_ij  = scale * <x_i, y_j> + y_bias_j                                x (N, D), y (M, D)
    lse_i = log sum_{j : x_id_i != y_id_j} exp(s_ij)                     -inf where every column is excluded

With upstream gradient g_i and p_ij = exp(s_ij - lse_i):

    dx_i = scale g_i sum_j p_ij y_j    dy_j = scale sum_i g_i p_ij x_i    dbias_j = sum_i g_i p_ij
    dscale = sum_i g_i sum_j p_ij <x_i, y_j>

dx and dy leave the op in ``gradient_dtype``: on a CPU they are rounded to the dtype of the rows by whoever passes them on.

Four schedules, U = 2 N M D FLOP:

    symmetric   y is x                   forward U/2 to U, backward 3U/2 to 2U: the weight g_i p_ij + g_j p_ji is symmetric
    two-sided   y or y_bias needs grad   forward U, backward 3U to 4U
    one-pass    only x or scale does     forward 2U, also emits mean_i = sum_j p_ij y_j; backward 0, nothing of y is saved
    no-grad     nothing does             forward U

What is saved for the backward: x, y and of each row (top, total, peak), which are the largest logit, the sum of exp(s - top) and
the column of the largest logit. The one-pass schedule saves the mean instead. No N x M matrix exists in any schedule.

The backward computes each s_ij again. A product of another shape, or one for which the vendor chose another algorithm, may give it
other last bits. So p_ij = min(1, exp(s_ij - top_i)) / total_i, and the logit at ``peak`` counts as top_i itself. A row that one
logit dominates then has the weight 1 there, however large the logits are. Every other weight is off by the rounding of its logit,
as it is in eager PyTorch.

The forward sweeps can also count: rank_i = #{j : x_id_i != y_id_j, s_ij > threshold_i}. Where the threshold is the positive's
logit, this is the positive's rank among the negatives, from which acc@1 and acc@5 follow without any stored logits.
"""

import torch
from torch import Tensor

from fastssl.checks import FLOATS, INTEGERS, check_like, check_matrix, check_scalar, check_vector, savable, traced, widest

from ._operands import SimilarityArguments, factor_of
from ._register import define_op, distinct, first_derivative_only, gradient_dtype, new_accumulator, refuse_transforms, save, saved

_OP = "similarity_lse"
_COMMON = "Tensor x, Tensor? y, float scale, Tensor? scale_factor, Tensor? x_id, Tensor? y_id, Tensor? y_bias"


def new_rank(x: Tensor, threshold: Tensor | None) -> Tensor:
    """Empty int32 (N,), or (0,) where nothing is counted."""
    return x.new_empty(0 if threshold is None else x.shape[0], dtype=torch.int32)


def _fake_fwd(*flat):
    x, threshold, n = flat[0], flat[-1], flat[0].shape[0]
    return new_accumulator(x, n), new_rank(x, threshold), new_accumulator(x, 2, n), x.new_empty(n, dtype=torch.int32)


def _fake_one_pass(*flat):
    x, threshold = flat[0], flat[-1]
    return new_accumulator(x, x.shape[0]), new_accumulator(x, *x.shape), new_rank(x, threshold)


def _fake_bwd(dlse, state, peak, *rest):
    (x, y, *_, y_bias), need = rest[:-1], rest[-1]
    dx = x.new_empty(x.shape if need[0] else (0,), dtype=gradient_dtype(x))
    dy = x.new_empty(y.shape if need[1] and y is not None else (0,), dtype=gradient_dtype(x))
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
    """A checked scale as an op takes it: (tensor, 1.0) for a tensor, (None, number) for a number."""
    value = savable(traced(value, like))
    return (value, 1.0) if isinstance(value, Tensor) else (None, float(value))


def scale_gradient(dscale: Tensor, scale: float, scale_factor: Tensor) -> Tensor:
    """The gradient of ``scale_factor``, in its shape and dtype, from that of the scale, which is ``scale * scale_factor``."""
    return (dscale * scale).to(scale_factor.dtype).reshape(scale_factor.shape)


def narrowed(flat: tuple, products: torch.dtype) -> tuple:
    """The arguments of an op, x and y in the dtype in which their products are taken."""
    x, y, *others = flat
    return x.to(products), None if y is None else y.to(products), *others


class _TwoSided(torch.autograd.Function):
    """The symmetric schedule (y is None) and the two-sided one: the backward computes the similarities again, tile by tile."""

    @staticmethod
    def forward(ctx, op, products, *flat):
        ctx.given = flat[0].dtype
        flat = narrowed(flat, products)
        x, y, scale, scale_factor, x_id, y_id, y_bias, _ = flat
        lse, rank, state, peak = _fwd(*flat)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)  # no zeros for the rank
        output = None if products == ctx.given else lse  # one input or output is saved, so that a second derivative is refused
        save(ctx, output, state, peak, x, y, scale_factor, x_id, y_id, y_bias)
        ctx.scale, ctx.op = scale, op
        return lse, rank

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 10
        _, state, peak, x, y, scale_factor, x_id, y_id, y_bias = saved(ctx)
        _, _, want_x, want_y, _, want_scale, _, _, want_bias, _ = ctx.needs_input_grad
        need = (want_x, want_y, want_bias, want_scale)
        dx, dy, dbias, dscale = _bwd(dlse, state, peak, x, y, ctx.scale, scale_factor, x_id, y_id, y_bias, need)
        dscale = scale_gradient(dscale, ctx.scale, scale_factor) if want_scale else None
        dbias = dbias if want_bias else None
        dx, dy = dx.to(ctx.given) if want_x else None, dy.to(ctx.given) if want_y else None
        return None, None, dx, dy, None, dscale, None, None, dbias, None


class _OnePass(torch.autograd.Function):
    """y and y_bias are constants: the forward leaves mean_i, and the backward never sees y."""

    @staticmethod
    def forward(ctx, op, *flat):
        x, _, scale, scale_factor, *_ = flat
        lse, mean, rank = _one_pass(*flat)
        ctx.mark_non_differentiable(rank)
        ctx.set_materialize_grads(False)  # no zeros for the rank
        save(ctx, mean, x, scale_factor)
        ctx.scale, ctx.op = scale, op
        return lse, rank

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, dlse, _):
        if dlse is None:
            return (None,) * 9
        mean, x, scale_factor = saved(ctx)
        _, want_x, _, _, want_scale, *_ = ctx.needs_input_grad
        dx = dscale = None
        if want_x:
            dx = (mean * (dlse * factor_of(ctx.scale, scale_factor, mean.dtype))[:, None]).to(x.dtype)
        if want_scale:
            dots = (mean * x.to(mean.dtype)).sum(1)
            dscale = scale_gradient((dots * dlse).sum(), ctx.scale, scale_factor)
        return None, dx, None, None, dscale, *(None,) * 4


def check_sides(op: str, x: Tensor, y: Tensor, scale: float | Tensor, x_id: Tensor | None, y_id: Tensor | None) -> None:
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


def similarity_lse_rank(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    x_id: Tensor | None = None,
    y_id: Tensor | None = None,
    y_bias: Tensor | None = None,
    threshold: Tensor | None = None,
    products: torch.dtype | None = None,
    op: str = _OP,
) -> tuple[Tensor, Tensor]:
    """``similarity_lse`` and, of each row, how many of its logits lie above ``threshold`` (N,), a constant: rank (N,) int32.

    Without a threshold the rank is (0,). ``op`` is the name in error messages. ``products`` is the dtype in which products are
    taken, of 16 bits for float32 rows whose values it holds; their gradients are then float32, so that others which cancel
    against them are added before anything is rounded.
    """
    check_sides(op, x, y, scale, x_id, y_id)
    if y_bias is not None:
        check_vector(op, "y_bias", y_bias, y.shape[0], FLOATS, "y", y)
    if threshold is not None:
        check_vector(op, "threshold", threshold, x.shape[0], FLOATS, "x", x)
        threshold = threshold.detach()
    refuse_transforms(op, x, y, scale, y_bias)
    x_id, y_id, y_bias, threshold = map(savable, (x_id, y_id, y_bias, threshold))
    scale_factor, scale = split_scalar(scale, x)
    symmetric = y is x and (y_id is None or y_id is x_id)
    if symmetric:
        arguments = SimilarityArguments(x, None, scale, scale_factor, x_id, None, y_bias, threshold)
    else:
        y_id = distinct(x_id if y_id is None else y_id, x_id)
        arguments = SimilarityArguments(x, distinct(y, x), scale, scale_factor, x_id, y_id, y_bias, threshold)
    products = x.dtype if products is None else products
    column_gradient = y.requires_grad or (y_bias is not None and y_bias.requires_grad)
    row_gradient = x.requires_grad or (scale_factor is not None and scale_factor.requires_grad)
    if torch.is_grad_enabled() and (column_gradient or (symmetric and row_gradient)):
        return _TwoSided.apply(op, products, *arguments)
    flat = narrowed(arguments, products)
    return _OnePass.apply(op, *flat) if torch.is_grad_enabled() and row_gradient else _fwd(*flat)[:2]


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
    gradient, nothing of ``y`` is kept for the backward, so that a queue may be overwritten in place at once.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, ids of one side alone, or a scale that is not finite.
        NotImplementedError: under torch.func transforms and forward-mode differentiation, and for a second derivative.

    Examples:
        >>> x = torch.eye(3)
        >>> lse = similarity_lse(x, x, scale=2.0, x_id=torch.arange(3))  # each row against the two others, whose logits are 0
        >>> lse.shape, round(lse[0].item(), 4)
        (torch.Size([3]), 0.6931)
    """
    x, y = widest(savable(x), savable(y)) if y is not x else (savable(x),) * 2
    return similarity_lse_rank(x, y, scale=scale, x_id=x_id, y_id=y_id, y_bias=y_bias)[0]
