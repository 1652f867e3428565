"""SIGReg in plain PyTorch, knot by knot: nothing is larger than N x S. The equations stand in ``fastssl/ops/sigreg.py``."""

import math

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


def grid(knots: int, t_max: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t, phi and w of the knots but the first, (K - 1, 1) each, in the dtype and on the device of ``like``."""
    step = t_max / (knots - 1)
    t = torch.arange(1, knots, dtype=torch.float64, device=like.device)[:, None] * step
    phi = (-0.5 * t * t).exp()
    weight = 2.0 * step * phi
    weight[-1] *= 0.5
    return t.to(like.dtype), phi.to(like.dtype), weight.to(like.dtype)


def _projected(z: Tensor, directions: Tensor) -> Tensor:
    """x (V, N, S) in the dtype of sums, whatever autocast says."""
    dtype = accumulator_dtype(z)
    return _product(z.to(dtype), directions.to(dtype))


def _angle(x: Tensor, t: float) -> Tensor:
    """t x less whole turns, which are counted in float64: the angle of a large x keeps the digits that x has."""
    turns = x.double() * (t / (2.0 * math.pi))
    return ((turns - turns.round()) * (2.0 * math.pi)).to(x.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b)


def sigreg_sums(z: Tensor, directions: Tensor, t_max: float, knots: int) -> Tensor:
    """z (V, N, D), directions (D, S) -> sums over N of cosines and sines, (V, 2, K - 1, S)."""
    x = _projected(z, directions)
    out = x.new_empty((x.shape[0], 2, knots - 1, x.shape[2]))
    for k in range(1, knots):
        angle = _angle(x, k * (t_max / (knots - 1)))
        out[:, 0, k - 1], out[:, 1, k - 1] = angle.cos().sum(1), angle.sin().sum(1)
    return out


def _deviations(sums: Tensor, total: Tensor | None, samples: int, phi: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
    """Means less those of a Gaussian, (V, K - 1, S) of cosines and of sines, and N."""
    count = samples if total is None else total.to(sums.dtype)
    return sums[:, 0] / count - phi, sums[:, 1] / count, count


def sigreg_loss(sums: Tensor, total: Tensor | None, samples: int, t_max: float) -> Tensor:
    """sums (V, 2, K - 1, S) -> the loss, a scalar."""
    _, phi, weight = grid(sums.shape[2] + 1, t_max, sums)
    cosine, sine, count = _deviations(sums, total, samples, phi)
    statistic = ((cosine * cosine + sine * sine) * weight).sum(1)  # (V, S)
    return statistic.mean() * count


def sigreg_bwd(
    grad: Tensor, sums: Tensor, total: Tensor | None, z: Tensor, directions: Tensor, samples: int, t_max: float
) -> Tensor:
    """The gradient of z (V, N, D) for the upstream gradient () of the loss."""
    knots = sums.shape[2] + 1
    t, phi, weight = grid(knots, t_max, sums)
    cosine, sine, _ = _deviations(sums, total, samples, phi)
    factor = grad.to(sums.dtype) * (2.0 / (sums.shape[0] * sums.shape[3])) * weight * t
    cosine, sine = (cosine * factor)[:, :, None], (sine * factor)[:, :, None]  # (V, K - 1, 1, S)
    x = _projected(z, directions)
    dx = torch.zeros_like(x)
    for k in range(1, knots):
        angle = _angle(x, k * (t_max / (knots - 1)))
        dx += sine[:, k - 1] * angle.cos() - cosine[:, k - 1] * angle.sin()
    return _product(dx, directions.to(dx.dtype).t()).to(z.dtype)
