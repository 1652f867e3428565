"""Contract of the pairwise sigmoid loss (SigLIP): loss and all gradients from one sweep.

    l_ij = scale <x_i, y_j> + bias,   t_ij = +1 where x_id_i = y_id_j, else -1                      x (N, D), y (M, D)
    v_ij = x_weight_i + y_weight_j where t_ij = +1 (1 without weights), else 1
    loss = sum_ij v_ij softplus(-t_ij l_ij)            w_ij = dloss / dl_ij = -t_ij v_ij sigmoid(-t_ij l_ij)
    dx = scale w y,   dy = scale w^T x,   dscale = sum_ij w_ij <x_i, y_j>,   dbias = sum_ij w_ij

U = 2 N M D FLOP: 3U in the forward where a gradient is wanted (4U where each side owns a sweep), U where none is; the backward
only multiplies by the upstream gradient. Neither the logits nor the +-1 labels exist as N x M matrices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.checks import FLOATS, check_scalar, check_vector, savable

from ._operands import SigmoidPair
from ._register import define_op, distinct, first_derivative_only, new_accumulator, refuse_transforms, save, saved
from .similarity import check_sides, split_scalar

_OP = "sigmoid_pair"


def _fake(*flat):
    operands, need = SigmoidPair(*flat[:-1]), flat[-1]
    sides = zip(operands[:2], need[:2], strict=True)
    dx, dy = (new_accumulator(t, *(t.shape if wanted else (0,))) for t, wanted in sides)
    dscale, dbias = (new_accumulator(operands.x, *(() if wanted else (0,))) for wanted in need[2:])
    return new_accumulator(operands.x), dx, dy, dscale, dbias


_op = define_op(
    "sigmoid_pair",
    "(Tensor x, Tensor y, float scale, Tensor? scale_factor, float bias, Tensor? bias_term, Tensor x_id, Tensor y_id, "
    "Tensor? x_weight, Tensor? y_weight, bool[4] need) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake,
    "sigmoid_pair",
)


def gradients(ctx, upstream: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Those of the operands, of which some are ``wanted``, from what the forward saved."""
    dx, dy, dscale, dbias, x, y, scale_factor, bias_term = saved(ctx)
    want_x, want_y, _, want_scale, _, want_bias, *_ = wanted
    shaped = lambda g, like: (g * upstream).to(like.dtype).reshape(like.shape)  # noqa: E731
    return (
        shaped(dx, x) if want_x else None,
        shaped(dy, y) if want_y else None,
        None,
        shaped(dscale * ctx.scale, scale_factor) if want_scale else None,
        None,
        shaped(dbias, bias_term) if want_bias else None,
        *(None,) * 4,
    )


class _SigmoidPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, *flat):
        x, y, scale, scale_factor, _, bias_term, *_ = flat
        _, want_x, want_y, _, want_scale, _, want_bias, *_ = ctx.needs_input_grad
        loss, *gradients = _op(*flat, (want_x, want_y, want_scale, want_bias))
        save(ctx, *gradients, x, y, scale_factor, bias_term)
        ctx.scale, ctx.op = scale, op
        return loss

    @staticmethod
    @first_derivative_only(_OP)
    def backward(ctx, upstream):
        return None, *gradients(ctx, upstream, ctx.needs_input_grad[1:])


def sigmoid_pair(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    x_id: Tensor,
    y_id: Tensor,
    x_weight: Tensor | None = None,
    y_weight: Tensor | None = None,
    op: str = _OP,
) -> Tensor:
    """Sum over all pairs of the sigmoid loss of Zhai et al. 2023, eq. 1 (before its 1 / |B|); a pair is positive where ids agree.

    Args:
        x: (N, D) float32, bfloat16, float16 or float64.
        y: (M, D), the dtype and device of ``x``.
        scale, bias: numbers or one-element float tensors, which may need gradients.
        x_id, y_id: (N,) and (M,) integers.
        x_weight, y_weight: (N,) and (M,) float constants, both or neither: a positive pair counts x_weight_i + y_weight_j times.
        op: name in error messages.

    Returns:
        Scalar, float32 (float64 for float64 input). Memory O((N + M) D). Differentiable once in x, y, scale and bias.
    """
    operands = operands_of(op, x, y, scale, bias, x_id, y_id, x_weight, y_weight)
    return _SigmoidPair.apply(op, *operands) if wants_gradient(operands) else _op(*operands, (False,) * 4)[0]


def wants_gradient(operands: SigmoidPair) -> bool:
    """Whether a gradient of any operand is to be computed."""
    differentiable = (operands.x, operands.y, operands.scale_factor, operands.bias_term)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)


def operands_of(
    op: str,
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    x_id: Tensor,
    y_id: Tensor,
    x_weight: Tensor | None,
    y_weight: Tensor | None,
) -> SigmoidPair:
    """The arguments of ``sigmoid_pair`` after their checks, as the op takes them."""
    check_sides(op, x, y, scale, x_id, y_id)
    check_scalar(op, "bias", bias, x)
    if (x_weight is None) != (y_weight is None):
        raise ValueError(f"{op}: x_weight and y_weight must be given together")
    if x_weight is not None and y_weight is not None:
        check_vector(op, "x_weight", x_weight, x.shape[0], FLOATS, "x", x)
        check_vector(op, "y_weight", y_weight, y.shape[0], FLOATS, "y", y)
        x_weight, y_weight = x_weight.detach(), y_weight.detach()
    refuse_transforms(op, x, y, scale, bias)
    x_id, y_id = savable(x_id), savable(y_id)
    scale_factor, scale = split_scalar(scale, x)
    bias_term, bias = split_scalar(bias, x)
    bias = 0.0 if bias_term is not None else bias
    ids = x_id, distinct(y_id, x_id)
    return SigmoidPair(x, distinct(y, x), scale, scale_factor, bias, distinct(bias_term, scale_factor), *ids, x_weight, y_weight)
