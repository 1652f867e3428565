"""What the methods that learn from several crops of an image share: checks of the crops, one forward for those of one size,
heads with prototypes, and gradients that are cancelled in the first steps."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_choice, check_number
from fastssl.momentum import linear_schedule

from ._checks import check_batch, check_positive

CENTERINGS = ("center", "sinkhorn")


def check_crops(name: str, global_crops: Any, local_crops: Any) -> list[Tensor]:
    """Both lists in one, the global crops first. Refuses what are no lists of crops (B, ...) of the same B samples."""
    crops: list[Tensor] = []
    for argument, part in (("global_crops", global_crops), ("local_crops", local_crops)):
        if isinstance(part, Tensor) or not isinstance(part, Sequence) or isinstance(part, str | bytes):
            raise TypeError(f"{name}: {argument} must be a list of tensors (B, ...), got {type(part).__name__}")
        for crop in part:
            check_batch(name, 2, **{argument: crop})
        crops += part
    if len(global_crops) < 2:
        raise ValueError(f"{name}: global_crops must hold at least 2 crops, got {len(global_crops)}")
    first = crops[0]
    for at, crop in enumerate(crops):
        argument = "global_crops" if at < len(global_crops) else "local_crops"
        if at < len(global_crops) and crop.shape != first.shape:
            raise ValueError(f"{name}: {argument} must have one shape, got {tuple(first.shape)} and {tuple(crop.shape)}")
        if len(crop) != len(first):
            raise ValueError(f"{name}: {argument} must hold crops of the same {len(first)} samples, got {tuple(crop.shape)}")
        if crop.device != first.device or (crop.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type)):
            got = f"{first.dtype} on {first.device} and {crop.dtype} on {crop.device}"
            raise TypeError(f"{name}: {argument} must have the same dtype and device as the first crop, got {got}")
    return crops


def through(encode: Callable[[Tensor], Tensor], crops: Sequence[Tensor]) -> Tensor:
    """crops of (B, ...) each -> encode(crop) (B, D) of all of them behind each other, one call for neighbours of one shape."""
    runs = [list(run) for _, run in groupby(crops, key=lambda crop: crop.shape)]
    rows = [encode(run[0] if len(run) == 1 else torch.cat(run)) for run in runs]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


class _Scaled(torch.autograd.Function):
    """x itself, whose gradient is multiplied by a scalar on the device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream * ctx.saved_tensors[0].to(upstream.dtype), None


def scaled_gradient(x: Tensor, factor: Tensor | None) -> Tensor:
    """x, with its gradient times ``factor`` (), where there is one."""
    return x if factor is None else _Scaled.apply(x, factor)


class Prototypes(nn.Module):
    """Scores of rows against K prototypes: (N, D) -> (N, K), without a bias.

    ``unit``: whether the forward divides each prototype by its length, so that the gradient does not change its length (DINO).
    Either way the backward keeps a copy of the prototypes, since SwAV writes to them before each forward: several forwards may come
    before one backward.
    """

    def __init__(self, width: int, count: int, *, unit: bool):
        super().__init__()
        self.unit = unit
        weight = torch.randn(count, width)
        self.weight = nn.Parameter(0.02 * weight if unit else F.normalize(weight, dim=1))

    def forward(self, z: Tensor, learns: Tensor | None = None) -> Tensor:
        """z (N, D); ``learns`` () is 0 while the prototypes' gradient is cancelled and 1 afterwards."""
        weight = scaled_gradient(self.weight, learns)
        return F.linear(z, F.normalize(weight, dim=1) if self.unit else weight.clone())


class DINOHead(nn.Module):
    """Three layers with GELU between them, unit length, and prototypes of unit length: (N, in_dim) -> (N, out_dim).

    Caron et al. 2021, appendix C.
    """

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, out_dim: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before in (in_dim, hidden_dim):
            layers += [nn.Linear(before, hidden_dim), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(bottleneck_dim, out_dim, unit=True)

    def project(self, features: Tensor) -> Tensor:
        """features (N, in_dim) -> rows of unit length (N, bottleneck_dim)."""
        return F.normalize(self.mlp(features), dim=1, eps=1e-6 if features.dtype == torch.float16 else 1e-12)

    def forward(self, features: Tensor) -> Tensor:
        return self.prototypes(self.project(features))


def began(step: Tensor, total_steps: int | None, share: float) -> Tensor | None:
    """1.0 from step ``share`` x ``total_steps`` on and 0.0 before, on the device; None where it is always 1."""
    if share == 0 or total_steps is None:
        return None
    return (step >= share * total_steps).to(torch.float32)


def warmed(step: Tensor, total_steps: int | None, values: tuple[float, float], share: float) -> float | Tensor:
    """From the first of the values to the last along a line, which ends at step ``share`` x ``total_steps``; on the device."""
    first, last = values
    steps = 0 if total_steps is None else round(share * total_steps)
    return last if steps == 0 or first == last else linear_schedule(step, steps, start=first, end=last)


def check_part(name: str, **shares: float) -> None:
    """Refuses what is no share of the training in [0, 1]."""
    for argument, value in shares.items():
        check_number(name, argument, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: {argument} must be in [0, 1], a share of total_steps, got {value}")


def first_and_last(name: str, argument: str, value: float | tuple[float, float]) -> tuple[float, float]:
    """(first, last) of a number or of a pair, all above 0."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: {argument} must be a number or a pair (first, last), got {value}")
    for each in pair:
        check_positive(name, **{argument: each})
    return float(pair[0]), float(pair[1])


def check_centering(name: str, centering: str) -> str:
    check_choice(name, "centering", centering, CENTERINGS)
    return centering
