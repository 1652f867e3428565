"""Contract of the op that turns two views into the rows of a contrastive loss: one pass over the data each way.

    z = [a / |a| ; b / |b|]  (2B, D)        dot_i = <z_i, z_{B+i}>  (B,)
    G_i = dz_i + ddot_i z_partner(i)        da_i = (G_i - z_i <z_i, G_i>) / |a_i|

|.| is clamped from below at eps = 1e-12, as in ``torch.nn.functional.normalize``. Bytes: forward reads 2BD and writes
2BD elements; backward reads 4BD and writes 2BD.
"""

import torch
from torch import Tensor

from ._register import define_op, distinct, first_derivative_only, new_accumulator, refuse_transforms, save, saved

EPS = 1e-12


def _fake_fwd(a, b, eps):
    rows = a.shape[0] + b.shape[0]
    return a.new_empty((rows, a.shape[1])), new_accumulator(a, rows), new_accumulator(a, a.shape[0])


def _fake_bwd(dz, ddot, z, norm, eps):
    half = z.shape[0] // 2
    return z.new_empty((half, z.shape[1])), z.new_empty((half, z.shape[1]))


_fwd = define_op("normalize_pair_fwd", "(Tensor a, Tensor b, float eps) -> (Tensor, Tensor, Tensor)", _fake_fwd, "normalize")
_bwd = define_op(
    "normalize_pair_bwd", "(Tensor dz, Tensor ddot, Tensor z, Tensor norm, float eps) -> (Tensor, Tensor)", _fake_bwd, "normalize"
)


class _NormalizePair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, eps, op):
        z, norm, dot = _fwd(a, b, eps)
        save(ctx, z, norm)
        ctx.eps, ctx.op = eps, op
        return z, dot

    @staticmethod
    @first_derivative_only("normalize_pair")
    def backward(ctx, dz, ddot):
        z, norm = saved(ctx)
        da, db = _bwd(dz, ddot, z, norm, ctx.eps)
        return da if ctx.needs_input_grad[0] else None, db if ctx.needs_input_grad[1] else None, None, None


def normalize_pair(a: Tensor, b: Tensor, eps: float = EPS, op: str = "normalize_pair") -> tuple[Tensor, Tensor]:
    """a, b (B, D), already checked -> z (2B, D) unit rows in their dtype, dot (B,) float32 (float64 for float64).

    ``eps``: what |.| is clamped at, in place of 1e-12; ``op``: the name in error messages.
    """
    refuse_transforms(op, a, b)
    return _NormalizePair.apply(a, distinct(b, a), eps, op)
