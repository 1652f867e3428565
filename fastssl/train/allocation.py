"""A bound on what a checkpoint's settings may ask for, before it is given.

Settings say how wide and how deep a method is, and the weights have just these shapes. Settings that ask for much more than the
weights hold are damaged or hostile: who builds the method first and compares shapes then takes the memory, and the time, that they
name.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SPARE = 2**26  # elements beyond those of weights and images: fixed tables
TIMES = 4  # that a weight may be made: drawn, copied to a teacher, made again
CALLS = 8  # that may make a tensor, for each weight
MADE_BY = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
MADE_BY |= {Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full}


class TooLarge(Exception):
    """A method asks for more than its weights can be."""


class Bounded(TorchFunctionMode):
    """Inside this context functions that take a size make so many tensors, of so many elements in all, as some weights need.

    Args:
        weights: tensors by name.
        data: what the method is built for: the side and the channels of its images and the number of its samples count too.

    Raises:
        TooLarge: from the call that would make more.
    """

    def __init__(self, weights: dict[str, Tensor], data: Any):
        super().__init__()
        pixels = getattr(data, "image_size", 0) ** 2 * getattr(data, "channels", 3)
        self.elements = SPARE + TIMES * sum(value.numel() for value in weights.values()) + 16 * pixels + 4096 * len(data.train)
        self.calls = CALLS * (len(weights) + 64)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in MADE_BY:
            self.elements -= math.prod(size_of(args, kwargs))
            self.calls -= 1
            if self.elements < 0 or self.calls < 0:
                raise TooLarge
        return func(*args, **kwargs)


def size_of(args: tuple, kwargs: dict[str, Any]) -> list[int]:
    """The size that a call names, as one sequence or number by number."""
    given = [each for each in args if not isinstance(each, Tensor)]
    size = kwargs.get("size", given[0] if given and isinstance(given[0], list | tuple) else given)
    return [int(each) for each in size if isinstance(each, int)]
