"""What the kernels of ``soft_cross_entropy`` and ``sinkhorn`` share: rows of logits, read in blocks, and the state of a softmax.

A tile is (L, R, V): L lanes, R rows, V neighbouring columns that one thread reads at once. Triton deals the lanes out to threads,
since they stand first, and each thread has all rows of its lanes. So what rows share is loaded once and never exchanged, reductions
over R and V stay inside a thread, and those over lanes wait until a row is read to its end:

    state of a row or column (t, S):  t = max_k y_k,   S = sum_k exp((y_k - t) / T),   y_k = x_k + b_k

A bias is added as Knuth's two-sum, so that what the rounding of x + b leaves over is not lost (``ops/soft_cross_entropy.py``), and
exponentials are those of base 2. Rows of the same group, which share a bias, are numbered from 0 (``member``). Partial states are
merged in a fixed order.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import device_properties
from .host.launch import launch
from .host.tensors import new

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))
#: Where a maximum starts: finite, so that no difference of two of them is NaN.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def member(i, group, inner, groups):
    """The place, in 64 bits, of the i-th row of a group; a row m belongs to group (m // inner) % groups."""
    outer = i // inner
    return (outer.to(tl.int64) * groups + group) * inner + (i - outer * inner)


@triton.jit
def lanes(start, L: tl.constexpr, V: tl.constexpr):
    """(L, 1, V): the columns of a block."""
    return start + (tl.arange(0, L) * V)[:, None, None] + tl.arange(0, V)[None, None, :]


@triton.jit
def of_rows(values):
    """Values (R,) of rows as (1, R, 1)."""
    return values[None, :, None]


@triton.jit
def load_tile(ptr, rows, stride, inside, columns, end, other):
    """(L, R, V) of a matrix in float32; ``other`` where a row is not inside or a column is behind the end."""
    mask = of_rows(inside) & (columns < end)
    return tl.load(ptr + of_rows(rows) * stride + columns, mask=mask, other=other).to(tl.float32)


@triton.jit
def add_bias(x, bias):
    """x + bias, rounded, and what the rounding left over."""
    total = x + bias
    of_bias = total - x
    rest = (x - (total - of_bias)) + (bias - of_bias)
    return total, tl.where(total == -INF, 0.0, rest)


@triton.jit
def load_logits(ptr, bias_ptr, rows, stride, inside, columns, end, bias_row, bias_stride):
    """The logits (L, R, V) with their bias, and what the rounding of the sum left over; -inf outside."""
    x = load_tile(ptr, rows, stride, inside, columns, end, -INF)
    rest = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + bias_row * bias_stride + columns, mask=columns < end, other=0.0)
        x, rest = add_bias(x, bias)
    return x, rest


@triton.jit
def row_states(
    x_ptr, bias_ptr, rows, stride, inside, bias_row, bias_stride, scale, lo, hi,
    SUMS: tl.constexpr, R: tl.constexpr, L: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """(t, S) of the columns lo to hi of R rows, ``scale`` = log2(e) / T; with SUMS (0, sum of the entries)."""
    top = tl.full((L, R), LOWEST, tl.float32)
    total = tl.zeros((L, R), tl.float32)
    for start in range(lo, hi, L * V):
        columns = lanes(start, L, V)
        if SUMS:
            total += tl.sum(load_tile(x_ptr, rows, stride, inside, columns, hi, 0.0), 2)
        else:
            y, rest = load_logits(x_ptr, bias_ptr, rows, stride, inside, columns, hi, bias_row, bias_stride)
            higher = tl.maximum(top, tl.max(y, 2))
            z = y - higher[:, :, None] + rest
            total = total * tl.exp2((top - higher) * scale) + tl.sum(tl.exp2(z * scale), 2)
            top = higher
    if SUMS:
        return tl.zeros((R,), tl.float32), tl.sum(total, 0)
    most = tl.max(top, 0)
    return most, tl.sum(total * tl.exp2((top - most[None, :]) * scale), 0)


@triton.jit(do_not_specialize=["M", "start_row", "members", "inner", "groups"])
def row_states_kernel(
    x_ptr, bias_ptr, weight_ptr, temperature_ptr, top_ptr, sum_ptr, M, start_row, members, inner, groups, stride, bias_stride,
    first, width, length, SECOND: tl.constexpr, SUMS: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
    V: tl.constexpr,
):  # fmt: skip
    """States (splits, M) of the rows of x, which begin at ``start_row``, over ``width`` columns from ``first`` on.
    grid (groups * blocks of rows, splits). Strides, ``first``, ``width`` and ``length`` are in units of UNIT."""
    stride, bias_stride, first, width, length = stride * UNIT, bias_stride * UNIT, first * UNIT, width * UNIT, length * UNIT
    blocks = tl.cdiv(members, R)
    group, split = tl.program_id(0) // blocks, tl.program_id(1)
    i = tl.program_id(0) % blocks * R + tl.arange(0, R)
    inside = i < members
    rows = member(i, group, inner, groups)
    scale = LOG2E / tl.load(temperature_ptr + SECOND).to(tl.float32)
    active = inside
    if weight_ptr is not None:
        active = inside & (tl.load(weight_ptr + rows, mask=inside, other=0.0) != 0.0)
    lo = first + split * length
    hi = tl.minimum(lo + length, first + width)
    end = tl.where(tl.max(active.to(tl.int32), 0) == 1, hi, lo)  # rows of weight 0 are not read
    top, total = row_states(x_ptr, bias_ptr, rows, stride, active, group, bias_stride, scale, lo, end, SUMS, R, L, V)
    at = split.to(tl.int64) * M + start_row + rows
    tl.store(top_ptr + at, top, mask=inside)
    tl.store(sum_ptr + at, total, mask=inside)


@triton.jit(do_not_specialize=["count", "of_first", "PARTS"])
def merge_states_kernel(
    top_ptr, sum_ptr, temperature_ptr, out_top_ptr, out_sum_ptr, count, of_first, PARTS, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """States (PARTS, count) -> (count,), or plain sums where top_ptr is None. The first temperature is that of the first
    ``of_first`` states, the second one that of the others."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros((BLOCK,), tl.float32)
    if top_ptr is None:
        for part in range(PARTS):
            total += tl.load(sum_ptr + tl.cast(part, tl.int64) * count + at, mask=inside, other=0.0)
    else:
        temperature = tl.load(temperature_ptr + tl.where(at < of_first, 0, 1), mask=inside, other=1.0).to(tl.float32)
        scale = LOG2E / temperature
        top = tl.full((BLOCK,), LOWEST, tl.float32)
        for part in range(PARTS):
            top = tl.maximum(top, tl.load(top_ptr + tl.cast(part, tl.int64) * count + at, mask=inside, other=LOWEST))
        for part in range(PARTS):
            place = tl.cast(part, tl.int64) * count + at
            less = tl.load(top_ptr + place, mask=inside, other=LOWEST) - top
            total += tl.load(sum_ptr + place, mask=inside, other=0.0) * tl.exp2(less * scale)
        if COLUMNS:
            top = tl.where(top == LOWEST, -INF, top)
        tl.store(out_top_ptr + at, top, mask=inside)
    tl.store(out_sum_ptr + at, total, mask=inside)


class RowTile(NamedTuple):
    """(rows, lanes, columns of a lane) of a program's tile, and its warps."""

    rows: int
    lanes: int
    columns: int
    warps: int

    @property
    def block(self) -> int:
        """The columns of a tile."""
        return self.lanes * self.columns

    @property
    def constants(self) -> dict[str, int]:
        return {"R": self.rows, "L": self.lanes, "V": self.columns, "num_warps": self.warps}


@functools.lru_cache(maxsize=256)
def row_tile(rows: int, width: int, narrow: bool, elements: int, warps: int = 8) -> RowTile:
    """The tile for ``rows`` rows of this width, with so many elements a thread and warps where rows are long enough. A lane has 8
    columns where all elements are ``narrow``, otherwise 4. There are at least as many lanes as threads."""
    columns = 8 if narrow else 4
    most = 32 * warps * elements // (columns * rows)
    lanes = min(max(32, triton.next_power_of_2(triton.cdiv(width, columns))), most)
    return RowTile(rows, lanes, columns, max(1, min(warps, lanes // 32, rows * lanes * columns // (32 * elements))))


def split_columns(blocks: int, width: int, block: int, num_sms: int) -> tuple[int, int]:
    """(splits of the columns, columns of a split) that give each multiprocessor four programs, if there are enough columns."""
    pieces = triton.cdiv(width, block)
    length = triton.cdiv(pieces, min(pieces, triton.cdiv(4 * num_sms, blocks))) * block
    return triton.cdiv(width, length), length


class Rows(NamedTuple):
    """Rows of one side, and which of the two temperatures is theirs."""

    x: Tensor  # (M, K), its last stride is 1
    bias: Tensor | None  # (G, K), contiguous
    weight: Tensor | None  # (M,)
    inner: int
    second: bool
    sums: bool = False  # whether the entries are summed, not their exponentials

    @property
    def groups(self) -> int:
        return 1 if self.bias is None else self.bias.shape[0]


def unit_of(columns: int, *sizes: int) -> int:
    """What all sizes are a multiple of: the columns of a lane, so that a thread reads its lane at once, or 1. Triton itself would
    learn of multiples of 16 alone."""
    return 1 if any(size % columns for size in sizes) else columns


def narrow(*tensors: Tensor | None) -> bool:
    """Whether a lane of 8 columns suits all of them."""
    return all(t is not None and t.element_size() == 2 for t in tensors)


def dense(t: Tensor) -> Tensor:
    """Rows whose elements lie side by side."""
    return t if t.stride(1) == 1 else t.contiguous()


def states(sides: Sequence[Rows], temperature: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """(t, S) of the rows of all sides, one side behind the other, over ``width`` columns from ``first`` on."""
    counts = [side.x.shape[0] for side in sides]
    num_sms = device_properties(sides[0].x.device).num_sms
    # rows that share a bias read it once
    tiles = [row_tile(1 if side.bias is None else 4, width, narrow(side.x) and side.bias is None, 32) for side in sides]
    blocks = [
        triton.cdiv(count // side.groups, tile.rows) * side.groups for count, side, tile in zip(counts, sides, tiles, strict=True)
    ]
    block = max(tile.block for tile in tiles)
    splits, length = split_columns(min(blocks), width, block, num_sms)
    top, total = new(sides[0].x, torch.float32, (splits, sum(counts)), (splits, sum(counts)))
    start = 0
    for side, tile, count, many in zip(sides, tiles, counts, blocks, strict=True):
        columns = side.x.stride(0), 0 if side.bias is None else side.bias.shape[1], first, width, length
        unit = unit_of(tile.columns, *columns)
        launch(
            row_states_kernel, (many, splits), side.x, side.bias, side.weight, temperature, top, total, sum(counts), start,
            count // side.groups, side.inner, side.groups, *(size // unit for size in columns), SECOND=side.second, SUMS=side.sums,
            UNIT=unit, **tile.constants,
        )  # fmt: skip
        start += count
    return (top, total) if splits == 1 else merge_states(top, total, temperature, counts[0])


def merge_states(top: Tensor, total: Tensor, temperature: Tensor, of_first: int, columns: bool = False) -> tuple[Tensor, Tensor]:
    """States (parts, ...) -> (n,). The second temperature is that of the states behind ``of_first``. Of ``columns`` that are -inf
    alone the largest is -inf."""
    parts, count = total.shape[0], total[0].numel()
    all_top, all_total = new(total, torch.float32, (count,), (count,))
    launch(
        merge_states_kernel, (triton.cdiv(count, 256),), top, total, temperature, all_top, all_total, count, of_first, parts,
        COLUMNS=columns, BLOCK=256, num_warps=4,
    )  # fmt: skip
    return all_top, all_total


def add_parts(parts: Tensor, out: Tensor) -> None:
    """parts (P, ...) -> their sum, in the order of the parts."""
    count = out.numel()
    launch(
        merge_states_kernel, (triton.cdiv(count, 256),), None, parts, None, None, out, count, 0, parts.shape[0], COLUMNS=False,
        BLOCK=256, num_warps=4,
    )  # fmt: skip
