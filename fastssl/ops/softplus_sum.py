"""Contract of the op that turns log-sum-exps over the negatives into a loss: one launch each way in place of seven.

    total = w sum_i softplus(u_i),   u_i = lse_i - scale positive_(i mod P)          lse (N,), positive (P,), N a multiple of P
    dlse_i = g w sigmoid(u_i),       dpositive_j = -scale sum_(i mod P = j) dlse_i    w = 1 / N for a mean, otherwise 1

softplus(lse - s_pos) is the cross-entropy of the positive (``loss/nt_xent.py``). Sums are taken in float64, in a fixed order.
Bytes: N + P numbers read, both ways; N + P written by the backward.
"""

import torch
from torch import Tensor

from ._register import define_op, first_derivative_only, refuse_transforms, save, saved


def _fake_fwd(lse, positive, scale, mean):
    return lse.new_empty(())


def _fake_bwd(dtotal, lse, positive, scale, mean):
    return torch.empty_like(lse), torch.empty_like(positive)


_fwd = define_op("softplus_sum_fwd", "(Tensor lse, Tensor positive, float scale, bool mean) -> Tensor", _fake_fwd, "softplus_sum")
_bwd = define_op(
    "softplus_sum_bwd",
    "(Tensor dtotal, Tensor lse, Tensor positive, float scale, bool mean) -> (Tensor, Tensor)",
    _fake_bwd,
    "softplus_sum",
)


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lse, positive, scale, mean, op):
        save(ctx, lse, positive)
        ctx.scale, ctx.mean, ctx.op = scale, mean, op
        return _fwd(lse, positive, scale, mean)

    @staticmethod
    @first_derivative_only("softplus_sum")
    def backward(ctx, dtotal):
        lse, positive = saved(ctx)
        dlse, dpositive = _bwd(dtotal, lse, positive, ctx.scale, ctx.mean)
        wants = ctx.needs_input_grad
        return dlse if wants[0] else None, dpositive if wants[1] else None, None, None, None


def softplus_sum(lse: Tensor, positive: Tensor, scale: float, mean: bool, op: str = "softplus_sum") -> Tensor:
    """lse (N,) and positive (P,), dense, of one dtype, float32 or float64, already checked -> their loss, a scalar of it."""
    refuse_transforms(op, lse, positive)
    return _SoftplusSum.apply(lse, positive, scale, mean, op)
