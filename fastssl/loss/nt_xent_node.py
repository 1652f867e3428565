"""NT-Xent of two views as one node of the autograd graph, which calls the ops of its three parts one after the other.

    z = [a / |a| ; b / |b|]        lse_i = log sum_{j not in {i, p(i)}} exp(scale <z_i, z_j>)        a, b (B, D)
    total = w sum_i softplus(lse_i - scale <z_i, z_p(i)>)

With a small batch most of the time is the host's, and three nodes with their checks took longer than these six ops do.
"""

import torch
from torch import Tensor

from fastssl.ops import normalize, similarity, softplus_sum
from fastssl.ops._register import distinct, first_derivative_only, save, saved

from .parts.ids import pair_ids


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, scale, mean, op):
        z, norm, dot = normalize._fwd(a, b, normalize.EPS)
        ids = pair_ids(a)
        lse, _, state, peak = similarity._fwd(z, None, scale, None, ids, None, None, None)
        total = softplus_sum._fwd(lse, dot, scale, mean)
        # The result is saved so that a second derivative comes here, where it is refused.
        save(ctx, z, norm, dot, ids, lse, state, peak, total)
        ctx.scale, ctx.mean, ctx.op = scale, mean, op
        return total

    @staticmethod
    @first_derivative_only("nt_xent")
    def backward(ctx, dtotal):
        z, norm, dot, ids, lse, state, peak, _ = saved(ctx)
        dlse, ddot = softplus_sum._bwd(dtotal, lse, dot, ctx.scale, ctx.mean)
        dz, *_ = similarity._bwd(dlse, state, peak, z, None, ctx.scale, None, ids, None, None, (True, False, False, False))
        da, db = normalize._bwd(dz, ddot, z, norm, normalize.EPS)
        wants = ctx.needs_input_grad
        return da if wants[0] else None, db if wants[1] else None, None, None, None


def pair_loss(op: str, a: Tensor, b: Tensor, scale: float, mean: bool) -> Tensor:
    """NT-Xent of the 2B unit rows of a and b (B, D), which were checked: mean or sum, float32 (float64 for float64)."""
    return _PairLoss.apply(a, distinct(b, a), scale, mean, op)
