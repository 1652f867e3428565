"""The arguments of a loss on their way in: what happens before the checks, and numbers that may be tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype, savable, traced, widest
from fastssl.distributed.ranks import Joined, Ranks, join
from fastssl.ops._register import refuse_transforms

from .local_rows import warn_local_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def enter(op: str, *tensors) -> tuple:
    """The first call of every loss: ``refuse_transforms``, then its tensors ``savable`` and, under autocast, of one dtype."""
    refuse_transforms(op, *tensors)
    return widest(*map(savable, tensors))


def scalar(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A checked number as float, or ``traced`` into a graph; a one-element tensor as a 0-d tensor.

    The tensor has the ``accumulator_dtype`` of ``like``, so that it does not widen what it is multiplied with.
    """
    if isinstance(value, Tensor):
        return savable(value).to(accumulator_dtype(like)).reshape(())
    return traced(value, like) if torch.compiler.is_compiling() else float(value)


def together(op: str, group: ProcessGroup | Ranks | None, rows: Tensor, **arguments) -> Joined | None:
    """The processes that compute a loss of ``rows`` (N, ...) together; None where they are this process's rows alone.

    ``arguments`` are what every process must have given alike. A tensor among them may differ in its values.
    """
    if group is None:
        warn_local_rows(op)
        return None
    return join(op, group, rows, **arguments)
