"""The op behind random directions: S unit columns of width D, made on the device from a seed.

    a_{d,s} = g_{d,s} / |g_s|,    g (D, S) independent standard normal numbers                                (D, S)

So each column is spread evenly over the sphere. Four numbers g, of d = 4 b to 4 b + 3, come from the four words of Philox4x32-10
of the counter (b, s, 0x64697273, 0) under the seed. Of a word w, u = (w / 2^8 + 1) / 2^24 is in (0, 1], and two words give two
normal numbers (Box and Muller 1958):

    sqrt(-2 log u_0) cos(2 pi u_1),    sqrt(-2 log u_0) sin(2 pi u_1)

The bits of u are the same on every device and in every process, so the directions are the same up to rounding. Bytes: D S numbers
written. Work: D S / 4 times 10 rounds of Philox, and one logarithm and one sine and cosine for two numbers.
"""

import torch
from torch import Tensor

from ._register import define_op

STREAM = 0x64697273


_unit_columns = define_op(
    "unit_columns",
    "(Tensor seed, SymInt width, SymInt count, ScalarType dtype) -> Tensor",
    lambda seed, width, count, dtype: seed.new_empty((width, count), dtype=dtype),
    "unit_columns",
)


def unit_columns(seed: Tensor, width: int, count: int, dtype: torch.dtype) -> Tensor:
    """seed () int64 -> (width, count) on its device, columns of length 1."""
    return _unit_columns(seed, width, count, dtype)
