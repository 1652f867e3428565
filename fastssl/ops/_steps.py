"""What the optimizer steps share: scalars that may lie on the device, a value for each tensor, copies written in the same pass."""

import math
from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor

from fastssl.checks import LARGEST, NUMBERS, as_python, as_scalar, check_dense, device_scalar, shown

from ._lists import bump_versions, laid_out


def step_scalar(
    op: str, name: str, value: float | Tensor, device: torch.device, low: float, *, whole: bool = False
) -> tuple[float, Tensor | None]:
    """A finite number of at least ``low`` as (number, None), or (0, tensor) where it lies on an accelerator or is being traced.

    ``whole``: an integer is wanted; a tensor may count in floats.
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
    value = as_python(value)
    if not low <= value <= LARGEST:
        raise ValueError(f"{op}: {name} must be {'' if whole else 'finite and '}at least {low:g}, got {shown(value)}")
    return as_scalar(value, device)


_MOST = torch.finfo(torch.float32).max


def _plain(values: list, kind: type) -> bool:
    """A quick yes: values that are Python's bools, or Python's floats in [0, the largest float32]; a NaN makes the sum NaN."""
    if {*map(type, values)} != {kind}:
        return False
    return kind is bool or (min(values) >= 0.0 and max(values) <= _MOST and math.isfinite(sum(values)))


def for_each_tensor(op: str, name: str, value, count: int, kind: type) -> list:
    """A bool or a number of at least 0 that float32 holds, or a sequence of ``count`` -> a list of ``count``, bools as 0 and 1."""
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


def with_copies(op: str, written: dict, ema, shadow, ema_shadow) -> dict:
    """``written`` and those of the lists that are given; the shadow of an average needs the average."""
    if ema_shadow is not None and ema is None:
        raise ValueError(f"{op}: ema_shadow must be given together with ema")
    copies = {"ema": ema, "shadow": shadow, "ema_shadow": ema_shadow}
    return written | {name: value for name, value in copies.items() if value is not None}


def run_in_place(kernel: Callable, written: dict, read: dict, as_they_are: bool, *options) -> None:
    """``kernel(params, ..., grads, ema, shadow, ema_shadow, *options)``; lists that are not given go as empty ones."""
    copies = ("ema", "shadow", "ema_shadow")

    def launch(lists: dict[str, list[Tensor]]) -> None:
        state = [lists[name] for name in written if name not in copies]
        kernel(*state, *(lists[name] for name in read), *(lists.get(name, []) for name in copies), *options)

    if as_they_are:
        launch(written | read)
    else:
        with laid_out(written, read) as lists:
            launch(lists)
    for tensors in written.values():
        bump_versions(tensors)
