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
def _normal(seed, blocks, columns, STREAM: tl.constexpr, high, low):
    """Rows 4 b, ..., 4 b + 3 of the columns (BS,) for the blocks b (BB,); four tensors (BB, BS)."""
    block = blocks[:, None] + columns[None, :] * 0
    column = columns[None, :] + blocks[:, None] * 0
    zero = block * 0
    w0, w1, w2, w3 = tl.philox(seed, block, column, zero + STREAM, zero)
    g0, g1 = _pair(w0, w1, high, low)
    g2, g3 = _pair(w2, w3, high, low)
    return g0, g1, g2, g3


@triton.jit
def unit_columns_kernel(seed_ptr, out_ptr, D, S, high, low, STREAM: tl.constexpr, BB: tl.constexpr, BS: tl.constexpr):
    """Columns program_id * BS ... of out (D, S), 4 BB rows at a time. grid (S / BS,)"""
    columns = tl.program_id(0) * BS + tl.arange(0, BS)
    there = (columns < S)[None, :]
    seed = tl.load(seed_ptr)
    squares = tl.zeros((BB, BS), tl.float32)
    for start in range(0, tl.cdiv(D, 4), BB):
        blocks = start + tl.arange(0, BB)
        left = (D - 4 * blocks)[:, None]
        g0, g1, g2, g3 = _normal(seed, blocks, columns, STREAM, high, low)
        squares += tl.where(left > 0, g0 * g0, 0.0)
        squares += tl.where(left > 1, g1 * g1, 0.0)
        squares += tl.where(left > 2, g2 * g2, 0.0)
        squares += tl.where(left > 3, g3 * g3, 0.0)
    scale = (1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 0)), 1e-30))[None, :]
    dtype = out_ptr.dtype.element_ty
    for start in range(0, tl.cdiv(D, 4), BB):
        blocks = start + tl.arange(0, BB)
        left = (D - 4 * blocks)[:, None]
        g0, g1, g2, g3 = _normal(seed, blocks, columns, STREAM, high, low)
        to = out_ptr + (4 * blocks).to(tl.int64)[:, None] * S + columns[None, :]
        tl.store(to, (g0 * scale).to(dtype), mask=there & (left > 0))
        tl.store(to + S, (g1 * scale).to(dtype), mask=there & (left > 1))
        tl.store(to + 2 * S, (g2 * scale).to(dtype), mask=there & (left > 2))
        tl.store(to + 3 * S, (g3 * scale).to(dtype), mask=there & (left > 3))


def tile_of(width: int) -> dict[str, int]:
    """Constants of the kernel. Many threads share a column, since one alone would wait for round after round of Philox."""
    blocks = min(max(4, triton.next_power_of_2(triton.cdiv(width, 4))), 64)
    return {"BB": blocks, "BS": 8, "num_warps": max(1, blocks // 16)}


def unit_columns(seed: Tensor, width: int, count: int, dtype: torch.dtype) -> Tensor:
    """seed () int64 -> (width, count), columns of length 1 in ``dtype``; those of float64 begin with the digits of float32."""
    if dtype == torch.float64:
        return torch.nn.functional.normalize(unit_columns(seed, width, count, torch.float32).double(), dim=0)
    (out,) = new(seed, dtype, (width, count))
    tile = tile_of(width)
    with on_device(seed):
        launch(
            unit_columns_kernel, (triton.cdiv(count, tile["BS"]),), seed, out, width, count, *quarter_turns(2.0 * math.pi),
            STREAM=STREAM, **tile,
        )  # fmt: skip
    return out
