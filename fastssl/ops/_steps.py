"""What the optimizers' steps share: scalars that may lie on the device, values for each tensor, copies of the parameters."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy
import torch
from torch import Tensor

from fastssl.checks import LARGEST, NUMBERS, as_python, as_scalar, check_dense, device_scalar, shown

EMA_MOMENTUM = 0.999  # where none is given


class Copies(TypedDict, total=False):
    """Copies of the new parameters that a step of an optimizer writes in the same pass."""

    ema: Tensor | Sequence[Tensor] | None  # averages, which move towards the new parameters
    ema_momentum: float | Tensor  # the share of an average that is kept
    shadow: Tensor | Sequence[Tensor] | None  # the new parameters, rounded to their own dtypes
    ema_shadow: Tensor | Sequence[Tensor] | None  # the new averages, rounded to their own dtypes


def step_scalar(
    op: str, name: str, value: float | Tensor, device: torch.device, low: float, *, whole: bool = False
) -> tuple[float, Tensor | None]:
    """Checks a finite number of at least ``low``; (number, None), or (0, tensor) where it lies on an accelerator or is traced.

    With ``whole`` an integer is wanted; a tensor may count in floats.
    """
    kind = "an integer" if whole else "a number"
    if isinstance(value, Tensor):
        check_dense(op, name, value)
        if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool or not (whole or value.dtype.is_floating_point):
            wanted = f"{kind} or a one-element{'' if whole else ' float'} tensor"
            raise ValueError(f"{op}: {name} must be {wanted}, got {value.dtype} {tuple(value.shape)}")
        if (scalar := device_scalar(op, name, value, device)) is not None:
            return 0.0, scalar
        value = value.item()
    elif isinstance(value, bool) or not isinstance(value, (int, numpy.integer) if whole else NUMBERS):
        raise TypeError(f"{op}: {name} must be {kind} or a one-element tensor, got {type(value).__name__}")
    number = as_python(value)
    if not low <= number <= LARGEST:
        raise ValueError(f"{op}: {name} must be {'' if whole else 'finite and '}at least {low:g}, got {shown(number)}")
    return as_scalar(number, device)


_MOST = torch.finfo(torch.float32).max


def _plain(values: list, kind: type) -> bool:
    """A quick check that values are Python's bools, or Python's floats in [0, the largest float32]; a NaN makes the sum NaN."""
    if {*map(type, values)} != {kind}:
        return False
    return kind is bool or (min(values) >= 0.0 and max(values) <= _MOST and math.isfinite(sum(values)))


def for_each_tensor(op: str, name: str, value, count: int, kind: type) -> list:
    """A list of ``count`` values, bools as 0 and 1, from one value or a sequence of ``count``.

    A value is a bool, or a number of at least 0 that float32 can hold.
    """
    if type(value) is list and len(value) == count and _plain(value, kind):
        return [*map(int, value)] if kind is bool else value
    values = [as_python(item) for item in (value if isinstance(value, Sequence) else [value])]
    for item in values:
        if isinstance(item, bool) != (kind is bool) or not isinstance(item, (int, float)):
            wanted = "True or False" if kind is bool else "a number"
            raise TypeError(f"{op}: {name} must be {wanted} or a sequence of them, got {type(item).__name__}")
        if not 0 <= item <= _MOST:
            raise ValueError(f"{op}: {name} must be finite in torch.float32 and at least 0, got {shown(item)}")
    if not isinstance(value, Sequence):
        values = values * count
    if len(values) != count:
        raise ValueError(f"{op}: {name} must be one value or {count}, one for each tensor of params, got {len(values)}")
    return [int(item) if kind is bool else float(item) for item in values]


def with_copies(op: str, written: dict, copies: Copies) -> dict:
    """``written`` and the lists of ``copies`` that are given; the shadow of an average needs the average."""
    check_copies(op, copies)
    given = {name: copies.get(name) for name in ("ema", "shadow", "ema_shadow")}
    return written | {name: value for name, value in given.items() if value is not None}


def check_copies(op: str, copies: Copies) -> None:
    """Refuses other names, as Python does where a function takes no further arguments, and a shadow without its average."""
    for name in copies:
        if name not in Copies.__annotations__:
            raise TypeError(f"{op}() got an unexpected keyword argument {name!r}")
    if copies.get("ema_shadow") is not None and copies.get("ema") is None:
        raise ValueError(f"{op}: ema_shadow must be given together with ema")
