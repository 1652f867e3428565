"""The choices of a call, made by bytes: whoever changes a byte changes a size, a stride, a dtype or an index."""

import math

import torch
from torch import Tensor

from .table import Maker
from .values import usual


class Bytes(Maker):
    """A maker whose random numbers are these bytes, in order, and zeros after the last of them."""

    def __init__(self, data: bytes):
        self._left = iter(data)
        super().__init__(data.hex())

    def byte(self) -> int:
        return next(self._left, 0)

    def getrandbits(self, k: int) -> int:
        return int.from_bytes(bytes(self.byte() for _ in range((k + 7) // 8)), "little") % (1 << k)

    def random(self) -> float:
        return self.byte() / 256.0

    def _randbelow(self, n: int) -> int:  # of choice and randrange
        count = max(1, ((n - 1).bit_length() + 7) // 8)
        return self.getrandbits(8 * count) % n

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Each from a byte of its own: in the range, and one byte in 64 beside it, far or near."""
        values = [self._integer(low, high) for _ in range(math.prod(shape))]
        return torch.tensor(values, dtype=torch.int64).reshape(shape)

    def _integer(self, low: int, high: int) -> int:
        byte = self.byte()
        if byte < 252:
            return low + byte % (high - low)
        self.spoils.append("an index beside its range")
        return (high, low - 1, -(2**63), 2**63 - 1)[byte - 252]

    def spoiled(self, x: Tensor) -> tuple[str, Tensor] | None:
        """In half of the cases any shape of any strides: the values of ``x`` in turn, as often as memory has place for them."""
        if self.byte() % 2 or x.is_complex() or not usual(x) or not x.numel():
            return None
        shape = [self.byte() % 12 for _ in range(self.byte() % 6)] if self.byte() % 2 else list(x.shape)
        strides = [self.choice((1, 0, 2, 3, 12, *x.stride())) for _ in shape]
        offset = self.byte() % 4
        place = offset + 1 + sum(stride * max(0, size - 1) for size, stride in zip(shape, strides, strict=True))
        memory = x.detach().reshape(-1).repeat(place // x.numel() + 1)[:place].clone()
        made = memory.as_strided(shape, strides, offset)
        return f"shape {shape}, strides {strides}, offset {offset}", made.requires_grad_(x.requires_grad)
