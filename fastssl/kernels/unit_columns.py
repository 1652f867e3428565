"""Unit columns from a seed in Triton: standard normal numbers by Philox4x32-10, divided by the length of their column. out (D, S)

    Four rows of a column come from the words of the counter (d / 4, s, "dirs", 0); (u_0, u_1) and (u_2, u_3) give two numbers each:
    sqrt(-2 log u_0) (cos, sin)(2 pi u_1),    u = (word / 2^8 + 1) / 2^24

A program owns some columns and makes their numbers twice, first for the lengths, then to write them: the numbers cost less than
reading them again would. Bytes: D S elements written.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops.unit_columns import STREAM

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new
from .tiles.waves import quarter_turns, wave


@triton.jit
def _log(u):
    """log u for u in (0, 1]: 2 atanh((m - 1) / (m + 1)) + e log 2, u = m 2^e, m from 1 / sqrt 2 to sqrt 2."""
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    m = (bits - (e << 23)).to(tl.float32, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    p = 0.181818187 * t + 0.222222224
    p = p * t + 0.285714298
    p = p * t + 0.400000006
    p = p * t + 0.666666687
    return (p * t + 2.0) * s + e.to(tl.float32) * 0.693147182


@triton.jit
def _unit(word):
    return ((word >> 8).to(tl.int32) + 1).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _pair(first, second, high, low):
    radius = tl.sqrt(-2.0 * _log(_unit(first)))
    c, s = wave(_unit(second), high, low)
    return radius * c, radius * s


@triton.jit
def _normal(seed, block, columns, STREAM: tl.constexpr, high, low):
    """Rows 4 block, ..., 4 block + 3 of the columns (BS,)."""
    zero = columns * 0
    w0, w1, w2, w3 = tl.philox(seed, zero + block, columns, zero + STREAM, zero)
    g0, g1 = _pair(w0, w1, high, low)
    g2, g3 = _pair(w2, w3, high, low)
    return g0, g1, g2, g3


@triton.jit
def unit_columns_kernel(seed_ptr, out_ptr, D, S, high, low, STREAM: tl.constexpr, BS: tl.constexpr):
    """Columns program_id * BS ... of out (D, S). grid (S / BS,)"""
    columns = tl.program_id(0) * BS + tl.arange(0, BS)
    there = columns < S
    seed = tl.load(seed_ptr)
    squares = tl.zeros((BS,), tl.float32)
    for block in range(tl.cdiv(D, 4)):
        g0, g1, g2, g3 = _normal(seed, block, columns, STREAM, high, low)
        squares += g0 * g0
        squares += tl.where(4 * block + 1 < D, g1 * g1, 0.0)
        squares += tl.where(4 * block + 2 < D, g2 * g2, 0.0)
        squares += tl.where(4 * block + 3 < D, g3 * g3, 0.0)
    scale = 1.0 / tl.maximum(tl.sqrt(squares), 1e-30)
    dtype = out_ptr.dtype.element_ty
    to = out_ptr + columns
    for block in range(tl.cdiv(D, 4)):
        g0, g1, g2, g3 = _normal(seed, block, columns, STREAM, high, low)
        tl.store(to, (g0 * scale).to(dtype), mask=there)
        tl.store(to + S, (g1 * scale).to(dtype), mask=there & (4 * block + 1 < D))
        tl.store(to + 2 * S, (g2 * scale).to(dtype), mask=there & (4 * block + 2 < D))
        tl.store(to + 3 * S, (g3 * scale).to(dtype), mask=there & (4 * block + 3 < D))
        to += 4 * S


def unit_columns(seed: Tensor, width: int, count: int, dtype: torch.dtype) -> Tensor:
    """seed () int64 -> (width, count), columns of length 1 in ``dtype``; those of float64 begin with the digits of float32."""
    if dtype == torch.float64:
        return torch.nn.functional.normalize(unit_columns(seed, width, count, torch.float32).double(), dim=0)
    (out,) = new(seed, dtype, (width, count))
    with on_device(seed):
        launch(
            unit_columns_kernel, (triton.cdiv(count, 32),), seed, out, width, count, *quarter_turns(2.0 * math.pi), STREAM=STREAM,
            BS=32, num_warps=1,
        )  # fmt: skip
    return out
