"""Two views, normalised and stacked, with the similarity of each pair, in plain PyTorch.

    z = [a / |a| ; b / |b|]  (2B, D)        norm = [|a| ; |b|]  (2B,)        dot_i = <z_i, z_{B+i}>  (B,)

|.| is clamped from below at ``eps``, as ``torch.nn.functional.normalize`` does; a clamped row is a constant divisor.
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


def normalize_pair_fwd(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """a (B, D), b (B, D) -> z (2B, D) in their dtype, norm (2B,) and dot (B,) in the accumulator dtype."""
    v = torch.cat([a, b]).to(accumulator_dtype(a))
    norm = torch.linalg.vector_norm(v, dim=1).clamp_min(eps)
    z = (v / norm[:, None]).to(a.dtype)
    zf = z.to(v.dtype)
    return z, norm, (zf[: len(a)] * zf[len(a) :]).sum(1)


def normalize_pair_bwd(dz: Tensor, ddot: Tensor, z: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """With G_i = dz_i + ddot_i z_partner(i):  da_i = (G_i - z_i <z_i, G_i>) / norm_i, without the projection in a clamped row."""
    half = len(z) // 2
    zf = z.to(norm.dtype)
    g = dz.to(norm.dtype) + ddot.repeat(2)[:, None] * zf.roll(half, 0)
    along = (zf * g).sum(1).masked_fill(norm <= eps, 0.0)
    dv = ((g - zf * along[:, None]) / norm[:, None]).to(z.dtype)
    return dv[:half].clone(), dv[half:].clone()
