"""One step of LARS on lists, in plain PyTorch; norms and trust ratio in float64.

d = g + wd p;    mu <- m mu + q d;    p <- p - lr mu (paper: lr inside q)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .ema import ema_update_


class LarsCall(NamedTuple):
    """The arguments of the op ``lars_`` in the order of its schema; ``form`` counts moco_v3, larc, paper from 0."""

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    lr: float
    lr_scalar: Tensor | None
    momentum: float
    weight_decay: list[float]
    trust_coefficient: float
    eps: float
    form: int
    adapt: list[int]
    nesterov: bool
    clip: bool
    ema: list[Tensor]
    ema_momentum: float
    ema_momentum_scalar: Tensor | None
    shadow: list[Tensor]
    ema_shadow: list[Tensor]


def lars_(*arguments) -> None:
    """One step in place on params, momenta, ema and the shadows of a ``LarsCall``."""
    call = LarsCall(*arguments)
    rate = number(call.lr, call.lr_scalar)
    for p, g, mu, wd, adapted in zip(call.params, call.grads, call.momenta, call.weight_decay, call.adapt, strict=True):
        wide = accumulator_dtype(p)
        old, gradient, moved = p.to(wide), g.to(wide), mu.to(wide)
        step = torch.add(gradient, old, alpha=wd)
        ratio: float | Tensor = 1.0
        if adapted:
            ratio, adapts = _trust_ratio(call, old, gradient, step, wd, rate)
            step = torch.where(adapts, step, gradient) if call.form == 1 else step
        if call.form == 2:
            ratio = ratio * rate
        step = step * (ratio.to(wide) if isinstance(ratio, Tensor) else ratio)
        moved = moved * call.momentum + step
        mu.copy_(moved)
        if call.nesterov:
            moved = torch.add(step, moved, alpha=call.momentum)
        p.copy_(_moved_by(old, moved, 1.0 if call.form == 2 else rate))
    write_copies(call)


def _trust_ratio(call: LarsCall, p: Tensor, g: Tensor, d: Tensor, wd: float, rate: float | Tensor) -> tuple[Tensor, Tensor]:
    """q as a 0-d float64 tensor, 1 where a norm is not above 0; and whether both norms are."""
    size, push = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in (p, d if call.form == 0 else g))
    ratio = call.trust_coefficient * size / (push if call.form == 0 else push + wd * size + call.eps)
    if call.clip:
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


def write_copies(call) -> None:
    """The averages and 16-bit copies of the new parameters, of a call of ``lars_`` or ``adamw_``; each list may be empty."""
    for copy, p in zip(call.shadow, call.params, strict=bool(call.shadow)):
        copy.copy_(p)
    if call.ema:
        momentum = call.ema_momentum, call.ema_momentum_scalar
        ema_update_(call.ema, call.params, call.ema_shadow, *momentum, False, False, 0, None)
