"""Schedules of the momentum: the share that is kept, from ``start`` at step 0 to ``end``.

    cosine   m = end - (end - start) (1 + cos(pi t)) / 2        linear   m = end - (end - start)(1 - t)
    warm-up  m = min(1 - (1 + step / gamma)^-power, maximum)

t = step / max_steps reaches 1 after the last step (DINO, BYOL, MoCo v3, solo-learn, I-JEPA). With ``last_is_end``, as in lightly,
t is step / (max_steps - 1) and reaches 1 at the last step. Everything is computed in float64, because the update weighs by 1 - m,
and of 1 - 0.9999 float32 keeps three digits, float64 twelve.
"""

import math
import operator

import torch
from torch import Tensor

from fastssl.checks import INTEGERS, check_dense, check_flag, check_number, shown


def cosine_schedule(
    step: int | Tensor, max_steps: int, *, start: float = 0.996, end: float = 1.0, last_is_end: bool = False
) -> float | Tensor:
    """Half a cosine from ``start`` to ``end`` (Grill et al. 2020, section 3.2; Caron et al. 2021, section 3.1).

    Args:
        step: An integer of at least 0, or an integer tensor of one element on any device; beyond ``max_steps`` the value stays
            ``end``.
        max_steps: The number of steps, at least 1.
        start: The value at step 0, a finite number. This and all later arguments are given by name, because lightly has two of
            these names in the same places with another last step.
        end: The last value, a finite number.
        last_is_end: False: ``end`` belongs to step ``max_steps``, as in DINO, BYOL, MoCo v3 and solo-learn. True: ``end`` belongs
            to step ``max_steps - 1``, as in lightly.

    Returns:
        A float; for a tensor a float64 tensor of shape () on its device, without a host sync, so that a captured CUDA graph
        computes it anew at each replay.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> from fastssl.momentum import cosine_schedule
        >>> [round(cosine_schedule(step, 100), 4) for step in (0, 50, 100)]
        [0.996, 0.998, 1.0]
    """
    t = _progress("cosine_schedule", step, max_steps, start, end, last_is_end)
    cosine = torch.cos(t * math.pi) if isinstance(t, Tensor) else math.cos(t * math.pi)
    first, last = float(start), float(end)  # a tensor multiplies by no integer beyond 64 bits
    return last - (last - first) * ((1.0 + cosine) / 2.0)


def linear_schedule(
    step: int | Tensor, max_steps: int, *, start: float = 0.996, end: float = 1.0, last_is_end: bool = False
) -> float | Tensor:
    """A straight line from ``start`` to ``end`` (Assran et al. 2023, I-JEPA, section 4).

    Args:
        step: An integer of at least 0, or an integer tensor of one element on any device; beyond ``max_steps`` the value stays
            ``end``.
        max_steps: The number of steps, at least 1.
        start: The value at step 0, a finite number.
        end: The last value, a finite number.
        last_is_end: False: ``end`` belongs to step ``max_steps``. True: it belongs to step ``max_steps - 1``.

    Returns:
        A float; for a tensor a float64 tensor of shape () on its device, without a host sync.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> from fastssl.momentum import linear_schedule
        >>> [round(linear_schedule(step, 100), 4) for step in (0, 25, 100)]
        [0.996, 0.997, 1.0]
    """
    t = _progress("linear_schedule", step, max_steps, start, end, last_is_end)
    first, last = float(start), float(end)
    return last - (last - first) * (1.0 - t)


def warmup_schedule(step: int | Tensor, gamma: float = 1.0, power: float = 2 / 3, maximum: float = 0.9999) -> float | Tensor:
    """Momentum that grows with the steps: ``min(1 - (1 + step / gamma)^-power, maximum)``, as in timm and ema-pytorch.

    With the default values the momentum reaches 0.999 after 31,600 steps.

    Args:
        step: An integer of at least 0, or an integer tensor of one element on any device.
        gamma: The number of steps that counts as one, above 0.
        power: The speed of the growth, above 0.
        maximum: The largest momentum, in [0, 1].

    Returns:
        A float; for a tensor a float64 tensor of shape () on its device, without a host sync.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> from fastssl.momentum import warmup_schedule
        >>> [round(warmup_schedule(step), 4) for step in (0, 1000, 10**9)]
        [0.0, 0.99, 0.9999]
    """
    op = "warmup_schedule"
    for name, value in (("gamma", gamma), ("power", power)):
        check_number(op, name, value)
        if value <= 0:
            raise ValueError(f"{op}: {name} must be above 0, got {value}")
    check_number(op, "maximum", maximum)
    if not 0 <= maximum <= 1:
        raise ValueError(f"{op}: maximum must be in [0, 1], got {maximum}")
    step, gamma, power, maximum = _step(op, step), float(gamma), float(power), float(maximum)
    if isinstance(step, Tensor):
        return (-torch.expm1(-power * torch.log1p(step / gamma))).clamp(max=maximum)
    return min(-math.expm1(-power * math.log1p(step / gamma)), maximum)


def _progress(op: str, step: int | Tensor, max_steps: int, start: float, end: float, last_is_end: bool) -> float | Tensor:
    """How much of the way from ``start`` to ``end`` is done, in [0, 1]."""
    max_steps = _whole(op, "max_steps", "an integer", max_steps, 1)
    check_number(op, "start", start)
    check_number(op, "end", end)
    check_flag(op, "last_is_end", last_is_end)
    step, last = _step(op, step), max_steps - last_is_end
    if last == 0:
        return torch.ones_like(step) if isinstance(step, Tensor) else 1.0
    return (step / last).clamp(max=1.0) if isinstance(step, Tensor) else min(step / last, 1.0)


def _step(op: str, step: int | Tensor) -> int | Tensor:
    """The step as an int of at least 0, or as a float64 tensor of shape ()."""
    wanted = "an integer or an integer tensor of one element"
    if not isinstance(step, Tensor):
        return _whole(op, "step", wanted, step, 0)
    check_dense(op, "step", step)
    if step.numel() != 1 or step.dtype not in INTEGERS:
        raise ValueError(f"{op}: step must be {wanted}, got {step.dtype} {tuple(step.shape)}")
    return step.detach().reshape(()).double().clamp(min=0.0)


def _whole(op: str, name: str, wanted: str, value, low: int) -> int:
    """An integer of any library in [low, 2^63)."""
    kind = type(value).__name__
    if not isinstance(value, int):
        try:
            value = None if isinstance(value, Tensor) else operator.index(value)
        except TypeError:
            value = None
    if value is None or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be {wanted}, got {kind}")
    if value < low:
        raise ValueError(f"{op}: {name} must be at least {low}, got {shown(value)}")
    if value >= 2**63:
        raise ValueError(f"{op}: {name} must be below 2^63, got {shown(value)}")
    return value
