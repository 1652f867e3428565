"""SIGReg, LeJEPA's loss and the sorted form of VISReg: inputs, calls, and eager forms as a careful user writes them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops.sorted_slices import sorted_slices
from fastssl.reference.unit_columns import unit_columns

from .inputs import Inputs, in_seven_bits, randn

SLICES = 37


def embeddings(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """z (N, D), somewhat wider than a standard Gaussian and off its centre."""
    return {"z": (1.2 * randn(shape, torch.float64, "cpu", seed) + 0.1).to(dtype).to(device)}


def views(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """z (3, N, D): three views of N samples."""
    base, noise = randn(shape, torch.float64, "cpu", seed), randn((3, *shape), torch.float64, "cpu", seed + 1)
    return {"z": (base + 0.4 * noise).to(dtype).to(device)}


def directions(z: Tensor, slices: int = SLICES) -> Tensor:
    """(D, S), the same in every dtype: a constant that is made from arithmetic which a compiled graph can trace."""
    angles = torch.arange(z.shape[-1] * slices, device=z.device, dtype=torch.float64).reshape(z.shape[-1], slices) ** 2
    return in_seven_bits(F.normalize(angles.sin(), dim=0)).to(z.dtype)


def with_directions(call, **how):
    """The call with given directions."""
    return lambda z: call(z, directions=directions(z), **how)


def with_seed(call, seed: int = 3, **how):
    """The call with directions that the op makes from a seed."""
    return lambda z: call(z, seed=seed, slices=SLICES, **how)


def eager_with_seed(call, seed: int = 3, **how):
    """The same with these directions made in plain PyTorch."""

    def run(z):
        made = unit_columns(torch.full((), seed, dtype=torch.int64, device=z.device), z.shape[-1], SLICES, torch.float64)
        return call(z, directions=made.to(z.dtype), **how)

    return run


def projections(z: Tensor, directions: Tensor) -> Tensor:
    """x (..., N, S) in the dtype of sums."""
    return (z @ directions).to(accumulator_dtype(z))


def sigreg(z: Tensor, directions: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """With the tensor of all angles, (..., N, S, K)."""
    x = projections(z, directions)
    t = torch.linspace(0, t_max, knots, dtype=x.dtype, device=x.device)
    phi = (-0.5 * t * t).exp()
    weight = torch.full_like(t, 2 * t_max / (knots - 1))
    weight[0] = weight[-1] = t_max / (knots - 1)
    angle = x.unsqueeze(-1) * t
    error = (angle.cos().mean(-3) - phi).square() + angle.sin().mean(-3).square()  # (..., S, K)
    return (error @ (weight * phi)).mean() * z.shape[-2]


def lejepa(z: Tensor, directions: Tensor, global_views: int = 2, lambda_param: float = 0.05) -> Tensor:
    wide = z.to(accumulator_dtype(z))
    error = (wide - wide[:global_views].mean(0)).square().mean()
    return lambda_param * sigreg(z, directions) + (1.0 - lambda_param) * error


def quantiles(x: Tensor) -> Tensor:
    count = x.shape[-2]
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=x.device)
    return torch.special.ndtri(ranks / (count + 1)).to(x.dtype)[:, None]


def shape_of(z: Tensor) -> Tensor:
    """The operation behind the shape term of ``visreg``."""
    wide = z.to(accumulator_dtype(z))
    return sorted_slices("visreg", wide, directions(z).to(wide.dtype))


def eager_shape_of(z: Tensor) -> Tensor:
    wide = z.to(accumulator_dtype(z))
    x = wide @ directions(z).to(wide.dtype)
    return (x.sort(-2).values - quantiles(x)).square().mean()


def visreg_terms(z: Tensor, directions: Tensor, global_views: int | None, eps: float = 1e-4) -> tuple[Tensor, ...]:
    """pred, scale, shape and center of ``visreg``, of z (V, N, D) in the dtype of sums."""
    pred = (z - z[:global_views].mean(0)).square().mean()
    mean, sigma = z.mean(-2, keepdim=True), z.std(-2, correction=0, keepdim=True)
    x = (z - mean) / (sigma.detach() + eps) @ directions.to(z.dtype)
    shape = (x.sort(-2).values - quantiles(x)).square().mean()
    return pred, (1 - sigma).square().mean(), shape, mean.square().mean()
