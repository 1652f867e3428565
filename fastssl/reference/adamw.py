"""One step of AdamW on lists, in plain PyTorch, with the roundings of torch.optim.AdamW (one tensor at a time)."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .lars import number, write_copies


def adamw_(
    params: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    grads: list[Tensor],
    ema: list[Tensor],
    shadow: list[Tensor],
    ema_shadow: list[Tensor],
    weight_decay: list[float],
    step: float,
    step_scalar: Tensor | None,
    lr: float,
    lr_scalar: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    ema_momentum: float,
    ema_momentum_scalar: Tensor | None,
) -> None:
    """In place on params, exp_avg, exp_avg_sq, ema and the shadows."""
    rate, t = number(lr, lr_scalar), number(step, step_scalar)
    size = rate / (1.0 - beta1**t)
    root = (1.0 - beta2**t) ** 0.5
    for p, g, m, v, wd in zip(params, grads, exp_avg, exp_avg_sq, weight_decay, strict=True):
        wide = accumulator_dtype(p)
        gradient = g.to(wide)
        kept = p.to(wide) * (1.0 - rate * wd)
        first = torch.lerp(m.to(wide), gradient, 1.0 - beta1)
        second = (v.to(wide) * beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        m.copy_(first)
        v.copy_(second)
        p.copy_(kept - first * size / ((second.sqrt() / root).add_(eps)))
    write_copies(params, ema, shadow, ema_shadow, ema_momentum, ema_momentum_scalar)
