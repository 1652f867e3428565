"""VISReg's shape: how far the projections of a batch are from a standard Gaussian, by their order (Wu et al. 2026, eq. 5).

    x = z A                                   z (V, N, D), unit columns A (D, S)
    loss = mean_{v, n, s} (x_vns - q_r)^2,    r = rank of x_vns among the N samples, from 1;    q_r = Phi^-1(r / (N + 1))
    dx_vns = 2 (x_vns - q_r) / (V N S),       dz = dx A^T

Of two equal projections either may come first. The gradient needs the ranks that the forward found, so one sweep makes both: a tile
of projections is made, sorted with the places of its entries, turned into dx and multiplied by A^T, so nothing of size N x S is
stored. The gradient is kept for the backward, which multiplies it with the upstream one. Bytes: z and A read, dz written. FLOPs:
4 V N D S with a gradient, 2 V N D S without, and about N log^2(N) comparisons for each view and direction.
"""

import torch
from torch import Tensor

from ._register import define_op, first_derivative_only, refuse_transforms, save, saved

_sorted_slices = define_op(
    "sorted_slices",
    "(Tensor z, Tensor directions, Tensor quantiles, bool gradient) -> (Tensor, Tensor)",
    lambda z, directions, quantiles, gradient: (z.new_empty(()), z.new_empty(z.shape if gradient else (0,))),
    "sorted_slices",
)


class _SortedSlices(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, directions, quantiles, op):
        loss, dz = _sorted_slices(z, directions, quantiles, True)
        save(ctx, z, dz)
        ctx.op = op
        return loss

    @staticmethod
    @first_derivative_only("visreg")
    def backward(ctx, upstream):
        return saved(ctx)[1] * upstream, None, None, None


def sorted_slices(op: str, z: Tensor, directions: Tensor) -> Tensor:
    """z (V, N, D) and directions (D, S), of one dtype, float32 or float64, already checked -> the loss, a scalar."""
    refuse_transforms(op, z)
    ranks = torch.arange(1, z.shape[1] + 1, dtype=torch.float64, device=z.device)
    quantiles = torch.special.ndtri(ranks / (z.shape[1] + 1)).to(z.dtype)  # (N,)
    if z.requires_grad and torch.is_grad_enabled():
        return _SortedSlices.apply(z.contiguous(), directions, quantiles, op)
    return _sorted_slices(z.contiguous(), directions, quantiles, False)[0]
