"""What a case of the fuzz says of a public function: how to make a legal call, what is right, and which arguments it writes."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class Maker(random.Random):
    """The random numbers of one call: the same ones whenever it is made again. Rows have the dtype of the call."""

    def __new__(cls, *words):
        return super().__new__(cls)

    def __init__(self, *words):
        super().__init__("/".join(map(str, words)))
        self.spoils: list[str] = []  # what it has spoiled on its own
        self.generator = torch.Generator().manual_seed(self.getrandbits(60))
        self.dtype = self.choice((torch.float32,) * 4 + (torch.float64, torch.bfloat16, torch.float16))

    def maybe(self, value, probability: float = 0.5):
        return value if self.random() < probability else None

    def rows(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def leaf(self, *shape: int) -> Tensor:
        """Rows that want a gradient, in half of the calls."""
        return self.rows(*shape).requires_grad_(self.random() < 0.5)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def spoiled(self, x: Tensor) -> tuple[str, Tensor] | None:
        """A tensor spoiled in a way of this maker's own, and how; None: in one of those that all have."""
        return None


@dataclass(frozen=True)
class Case:
    """``make(m)`` gives the keyword arguments of a legal call of ``function``, whose public name is ``name``.

    ``truth`` takes the same arguments, tensors in float64 or in their own dtype, and returns what is right; an argument named in
    ``writes`` it changes in place as the function does. ``seen(found, arguments)`` is what of a result is compared, where a part of
    it is free. ``call(function, arguments)`` replaces ``function(**arguments)``.
    """

    name: str
    function: Callable
    make: Callable[[Maker], dict]
    truth: Callable | None = None
    seen: Callable | None = None
    writes: tuple[str, ...] = ()
    call: Callable = lambda function, arguments: function(**arguments)
    names: tuple[str, ...] = ()  # further words that a refusal may name as an argument
    through: tuple[str, ...] = ()  # functions of the user, whose own errors come through
    rough: tuple[str, ...] = ()  # ways to spoil a tensor that the function's own formula does not survive: not compared
