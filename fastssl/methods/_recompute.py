"""What a forward does once, though activation checkpointing runs the forward again in the backward.

``torch.utils.checkpoint`` around a method, or around a model that holds one, calls ``forward`` a second time. That time nothing may
move (teacher, queue, bank, counters), and what came from them must be what it was: a queue that holds this batch's own keys gives
another loss. So each method runs its student first, then what has no gradient inside ``once``, whose result is kept until the next
forward: the second time it is returned as it is, and no random number and no collective is used up for it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def recomputing() -> bool:
    """Whether this code runs inside a backward, which only checkpointing does with a forward."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Kept:
    """The result of a method's last training forward and which inputs it was for; a copy or a pickle of it is empty.

    ``forwards`` counts those for the same inputs since a backward last asked: of two, nothing says which one is run again.
    """

    def __init__(self) -> None:
        self.place: tuple | None = None
        self.result: Any = None
        self.forwards = 0

    def keep(self, place: tuple, result: Any) -> None:
        self.forwards = self.forwards + 1 if place == self.place else 1
        self.place, self.result = place, result

    def __reduce__(self) -> tuple:
        return Kept, ()


def place_of(inputs: Tensor) -> tuple:
    """Equal for a tensor and its detached self, which is what checkpointing hands to the second call, until it is written to."""
    version = 0 if inputs.is_inference() else inputs._version
    return inputs.untyped_storage()._cdata, inputs.storage_offset(), tuple(inputs.shape), version


def once(method: nn.Module, inputs: Tensor, act: Callable[[], T]) -> T:
    """``act()`` for the first argument of a forward, or what it gave where this forward is run again.

    In evaluation mode nothing moves, so ``act`` may run twice.

    Raises:
        NotImplementedError: the forward that is run again is not the method's last one, or one of two of the same inputs.
    """
    if not method.training:
        return act()
    if torch.compiler.is_compiling():
        return _marked(act(), type(method).__name__)
    kept = method.__dict__.setdefault("_kept", Kept())
    if not recomputing():
        result = act()
        kept.keep(place_of(inputs), result)
        return result
    if kept.place != place_of(inputs) or kept.forwards > 1:
        raise NotImplementedError(
            f"{type(method).__name__}: activation checkpointing runs a forward again that is not the last one, is one of two of "
            "the same views, or whose views were made inside the checkpointed function; call backward before the next forward, "
            "and checkpoint the method or its encoder"
        )
    kept.forwards = 0
    return kept.result


@torch.library.custom_op("fastssl::not_recomputed", mutates_args=())
def not_recomputed(x: Tensor, name: str) -> Tensor:
    """A copy of x; inside a backward it refuses. In a compiled graph the only way to notice a second run is to be part of it."""
    if torch._C._current_graph_task_id() != -1:
        raise NotImplementedError(
            f"{name}: activation checkpointing runs the method again, which as a part of a compiled graph would see what it has "
            "moved; checkpoint its encoder or backbone instead, or do not compile the method"
        )
    return x.clone()


@not_recomputed.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def _marked(result: Any, name: str) -> Any:
    """``result`` of ``once``, a tensor or a sequence with tensors, which the loss cannot be run again without."""
    if isinstance(result, Tensor):
        return not_recomputed(result, name)
    return [not_recomputed(part, name) if isinstance(part, Tensor) else part for part in result]
