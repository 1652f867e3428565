"""One step of LARS on lists, in plain PyTorch; norms and trust ratio in float64.

d = g + wd p;    mu <- m mu + q d;    p <- p - lr mu (paper: lr inside q)
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .ema import ema_update_


def lars_(
    params: list[Tensor],
    momenta: list[Tensor],
    grads: list[Tensor],
    ema: list[Tensor],
    shadow: list[Tensor],
    ema_shadow: list[Tensor],
    weight_decay: list[float],
    adapt: list[int],
    form: int,
    lr: float,
    lr_scalar: Tensor | None,
    momentum: float,
    trust_coefficient: float,
    eps: float,
    nesterov: bool,
    clip: bool,
    ema_momentum: float,
    ema_momentum_scalar: Tensor | None,
) -> None:
    """In place on params, momenta, ema and the shadows; ``form`` counts moco_v3, larc, paper from 0."""
    rate = number(lr, lr_scalar)
    for p, g, mu, wd, adapted in zip(params, grads, momenta, weight_decay, adapt, strict=True):
        wide = accumulator_dtype(p)
        old, gradient, moved = p.to(wide), g.to(wide), mu.to(wide)
        step = torch.add(gradient, old, alpha=wd)
        ratio = 1.0
        if adapted:
            ratio, adapts = _trust_ratio(old, gradient, step, wd, form, rate, trust_coefficient, eps, clip)
            step = torch.where(adapts, step, gradient) if form == 1 else step
        if form == 2:
            ratio = ratio * rate
        step = step * (ratio.to(wide) if isinstance(ratio, Tensor) else ratio)
        moved = moved * momentum + step
        mu.copy_(moved)
        if nesterov:
            moved = torch.add(step, moved, alpha=momentum)
        p.copy_(_moved_by(old, moved, 1.0 if form == 2 else rate))
    write_copies(params, ema, shadow, ema_shadow, ema_momentum, ema_momentum_scalar)


def _trust_ratio(p, g, d, wd, form, rate, trust_coefficient, eps, clip) -> tuple[Tensor, Tensor]:
    """q as a 0-d float64 tensor, 1 where a norm is not above 0; and whether both are."""
    size, push = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in (p, d if form == 0 else g))
    ratio = trust_coefficient * size / (push if form == 0 else push + wd * size + eps)
    if clip:
        ratio = torch.where(ratio < rate, ratio / rate, 1.0)
    adapts = (size > 0) & (push > 0)
    return torch.where(adapts, ratio, 1.0), adapts


def _moved_by(p: Tensor, move: Tensor, rate: float | Tensor) -> Tensor:
    return torch.addcmul(p, move, (-rate).to(p.dtype)) if isinstance(rate, Tensor) else torch.add(p, move, alpha=-rate)


def number(value: float, scalar: Tensor | None) -> float | Tensor:
    """The number itself; on an accelerator a 0-d float64 tensor in its place."""
    if scalar is None:
        return value
    return scalar.double() if scalar.device.type != "cpu" else scalar.item()


def write_copies(
    params: list[Tensor],
    ema: list[Tensor],
    shadow: list[Tensor],
    ema_shadow: list[Tensor],
    ema_momentum: float,
    ema_momentum_scalar: Tensor | None,
) -> None:
    """The averages and 16-bit copies of the new parameters; each list may be empty."""
    for copy, p in zip(shadow, params, strict=bool(shadow)):
        copy.copy_(p)
    if ema:
        ema_update_(ema, params, ema_shadow, ema_momentum, ema_momentum_scalar, False, False, 0, None)
