"""Checks of the arguments that several methods have."""

from typing import Any

import numpy
import torch
from torch import Tensor

from fastssl.checks import (
    INTEGERS,
    LARGEST,
    NUMBERS,
    as_python,
    check_choice,
    check_dense,
    check_scalar,
    check_vector,
    check_whole,
    readable,
)


def given(**values: Any) -> dict[str, Any]:
    """Those of the arguments that are not None."""
    return {argument: value for argument, value in values.items() if value is not None}


def check_widths(name: str, **widths: int) -> None:
    """Refuses what is no whole number of at least 1."""
    for argument, value in widths.items():
        check_whole(name, argument, value, 1)


def _number(name: str, argument: str, value: float | Tensor) -> float | None:
    """A number or one-element float tensor as a number; None where the host may not look at it."""
    if isinstance(value, Tensor):
        check_scalar(name, argument, value, value)
        return float(value.detach()) if readable(value) else None
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    return as_python(value)


def check_positive(name: str, **values: float | Tensor) -> None:
    """Refuses what is no finite number above 0."""
    for argument, value in values.items():
        number = _number(name, argument, value)
        if number is not None and not 0 < number <= LARGEST:
            raise ValueError(f"{name}: {argument} must be above 0 and finite, got {value}")


def check_share(name: str, **values: float | Tensor) -> None:
    """Refuses what is no share in [0, 1] of a teacher that a step keeps."""
    for argument, value in values.items():
        number = _number(name, argument, value)
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"{name}: {argument} must be in [0, 1], the share of the teacher that is kept, got {value}")


def check_flags(name: str, **values: bool) -> None:
    for argument, value in values.items():
        if not isinstance(value, (int, numpy.bool_)) or value not in (0, 1):
            raise TypeError(f"{name}: {argument} must be True or False, got {type(value).__name__}")


def check_split(name: str, split: Any) -> None:
    if split is not None and not callable(split):
        raise TypeError(f"{name}: split must be a function, got {type(split).__name__}")


def check_negatives(name: str, negatives: str) -> str:
    check_choice(name, "negatives", negatives, ("global", "local"))
    return negatives


def check_statistics(name: str, statistics: str) -> str:
    check_choice(name, "statistics", statistics, ("global", "local"))
    return statistics


def check_batch(name: str, least: int, **inputs: Tensor) -> None:
    """Refuses what is no dense tensor (B, ...) with something in it and B of at least ``least``."""
    for argument, value in inputs.items():
        check_dense(name, argument, value, "a tensor (B, ...)")
        if value.ndim < 2 or 0 in value.shape or len(value) < least:
            raise ValueError(f"{name}: {argument} must have shape (B, ...) with B of at least {least}, got {tuple(value.shape)}")


def samples_of(name: str, index: Tensor, images: Tensor, num_samples: int) -> Tensor:
    """index (B,) as int64: which of ``num_samples`` samples the images (B, ...) are of. Refused where it does not fit them."""
    check_vector(name, "index", index, len(images), INTEGERS, "images", images)
    if readable(index) and not 0 <= int(index.min()) <= int(index.max()) < num_samples:
        bounds = f"{int(index.min())} to {int(index.max())}"
        raise ValueError(f"{name}: index must lie in 0 to {num_samples - 1} (num_samples), got {bounds}")
    return index.long()


def check_like_first(name: str, **views: Tensor) -> None:
    """Refuses views (B, ...) of which one has another B, dtype or device than the first."""
    first_name, first = next(iter(views.items()))
    for argument, view in views.items():
        if len(view) != len(first):
            raise ValueError(f"{name}: {argument} must have as many rows as {first_name}, {len(first)}, got {len(view)}")
        if view.device != first.device or (view.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type)):
            raise TypeError(
                f"{name}: {argument} must have dtype and device of {first_name}, {first.dtype} on {first.device}, "
                f"got {view.dtype} on {view.device}"
            )
