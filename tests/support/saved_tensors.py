"""Hooks on saved tensors that give back another tensor than was saved."""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Exchanged(torch.autograd.graph.saved_tensors_hooks):
    """Of the tensors that are saved inside this context, one will come back as ``change`` makes it."""

    def __init__(self, change: Callable[[Tensor], Tensor]):
        self._change, self._place = change, -1
        self._callers: list[str] = []
        super().__init__(self._pack, self._unpack)

    def in_turn(self, caller: str | None = None) -> Iterator[int]:
        """Changes one tensor after the other; with ``caller``, those that were saved from a Python function of this name."""
        for place, name in enumerate(self._callers):
            if caller in (None, name):
                self._place = place
                yield place

    def _pack(self, tensor: Tensor) -> tuple[int, Tensor]:
        self._callers.append(sys._getframe(1).f_code.co_name)
        return len(self._callers) - 1, tensor

    def _unpack(self, packed: tuple[int, Tensor]) -> Tensor:
        place, tensor = packed
        return self._change(tensor) if place == self._place else tensor
