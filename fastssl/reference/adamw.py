"""One step of AdamW on lists, in plain PyTorch, with the roundings of torch.optim.AdamW (one tensor at a time)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .lars import number, write_copies


class AdamWCall(NamedTuple):
    """The arguments of the op ``adamw_`` in the order of its schema."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    step: float
    step_scalar: Tensor | None
    lr: float
    lr_scalar: Tensor | None
    beta1: float
    beta2: float
    eps: float
    weight_decay: list[float]
    ema: list[Tensor]
    ema_momentum: float
    ema_momentum_scalar: Tensor | None
    shadow: list[Tensor]
    ema_shadow: list[Tensor]


def adamw_(*arguments) -> None:
    """One step in place on params, exp_avg, exp_avg_sq, ema and the shadows of an ``AdamWCall``."""
    call = AdamWCall(*arguments)
    beta1, beta2 = call.beta1, call.beta2
    rate, t = number(call.lr, call.lr_scalar), number(call.step, call.step_scalar)
    size = rate / (1.0 - beta1**t)
    root = (1.0 - beta2**t) ** 0.5
    for p, g, m, v, wd in zip(call.params, call.grads, call.exp_avg, call.exp_avg_sq, call.weight_decay, strict=True):
        wide = accumulator_dtype(p)
        gradient = g.to(wide)
        kept = p.to(wide) * (1.0 - rate * wd)
        first = torch.lerp(m.to(wide), gradient, 1.0 - beta1)
        second = (v.to(wide) * beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        m.copy_(first)
        v.copy_(second)
        p.copy_(kept - first * size / ((second.sqrt() / root).add_(call.eps)))
    write_copies(call)
