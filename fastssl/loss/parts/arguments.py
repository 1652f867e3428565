"""The arguments of a loss on their way in: what happens before the checks, and numbers that may be tensors."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype, savable, traced, widest
from fastssl.ops._register import refuse_transforms


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


def refuse_group(op: str, group: object) -> None:
    """``group`` stands in the signatures for losses over several processes, which are not there yet."""
    if group is not None:
        raise NotImplementedError(f"{op}: group= (negatives from other processes) is not there yet; call it without group")
