"""sinkhorn in Triton: one reading of the logits (M, K) for the start and two for a step; nothing else has their size.

    start:  top_gk = max over the rows m of group g of x_mk,   sum_gk = sum over them of exp((x_mk - top_gk) / T)
    step:   c_gk   = sum over the rows m of group g of exp((y_mk - t_m) / T) / S_m,   y = x + b,   (t_m, S_m) the state of row m

A step first makes the states of the rows (``soft_rows``), head by head. Then, as in the start, a program owns a block of columns
and a part of the rows of one group, and the parts are merged in a fixed order. Each lane adds up its own columns; no lane waits for
another.

Bytes: M K elements a reading, so 5 readings for 3 iterations; G K numbers written; 8 G K for each part of the rows. Expected on an
H200 (4.3 TB/s) for 4,915 x 65,536 in bfloat16: 0.15 ms a reading, 0.78 ms for 3 iterations. At 128 x 65,536 the logits stay in L2,
and the eleven launches take most of the time, 0.04 ms in a graph.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import device_properties, on_device
from .host.launch import launch
from .host.tensors import new
from .soft_rows import (
    INF,
    LOG2E,
    LOWEST,
    Rows,
    add_bias,
    add_parts,
    dense,
    lanes,
    load_tile,
    member,
    merge_states,
    narrow,
    of_rows,
    states,
    unit_of,
)

#: Rows that a lane reads at once, and the most lanes of a program.
_ROWS, _LANES = 4, 128


@triton.jit(do_not_specialize=["members", "inner", "groups", "part"])
def columns_kernel(
    x_ptr, bias_ptr, temperature_ptr, row_top_ptr, row_sum_ptr, top_ptr, sum_ptr, members, inner, groups, part, stride, K, first,
    width, GROUPED: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, L: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Of ``part`` rows of a group at a time (top, sum) of the columns, or with a bias their sum: (parts, G, K).
    grid (groups * blocks of columns, parts). The stride, K, ``first`` and ``width`` are in units of UNIT."""
    stride, K, first, width = stride * UNIT, K * UNIT, first * UNIT, width * UNIT
    blocks = tl.cdiv(width, L * V)
    group = tl.program_id(0) // blocks
    columns = lanes(first + tl.program_id(0) % blocks * (L * V), L, V)  # (L, 1, V)
    end = first + width
    scale = LOG2E / tl.load(temperature_ptr).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + group.to(tl.int64) * K + columns, mask=columns < end, other=0.0)
    else:
        top = tl.full((L, V), LOWEST, tl.float32)
    total = tl.zeros((L, V), tl.float32)
    lo = tl.program_id(1) * part
    for start in range(lo, tl.minimum(lo + part, members), R):
        i = start + tl.arange(0, R)
        inside = i < members
        rows = member(i, group, inner, groups) if GROUPED else i.to(tl.int64)
        x = load_tile(x_ptr, rows, stride, inside, columns, end, -INF)
        if bias_ptr is not None:
            y, rest = add_bias(x, bias)
            row_top = tl.load(row_top_ptr + rows, mask=inside, other=0.0)
            row_sum = tl.load(row_sum_ptr + rows, mask=inside, other=0.0)
            share = tl.where(row_sum == 0.0, 0.0, 1.0 / row_sum)  # a row of -inf alone adds nothing
            total += tl.sum(tl.exp2((y - of_rows(row_top) + rest) * scale) * of_rows(share), 1)
        else:
            higher = tl.maximum(top, tl.max(x, 1))
            total = total * tl.exp2((top - higher) * scale) + tl.sum(tl.exp2((x - higher[:, None, :]) * scale), 1)
            top = higher
    places = first + tl.program_id(0) % blocks * (L * V) + (tl.arange(0, L) * V)[:, None] + tl.arange(0, V)[None, :]
    at = (tl.program_id(1).to(tl.int64) * groups + group) * K + places
    if bias_ptr is None:
        tl.store(top_ptr + at, top, mask=places < end)
    tl.store(sum_ptr + at, total, mask=places < end)


@functools.lru_cache(maxsize=256)
def lanes_of(width: int, columns: int) -> int:
    """The lanes of a program, of so many columns each."""
    return min(_LANES, max(32, triton.next_power_of_2(triton.cdiv(width, columns))))


@functools.lru_cache(maxsize=256)
def rows_of_a_part(members: int, groups: int, width: int, columns: int, num_sms: int) -> int:
    """The rows of a group that a program takes: eight programs on each multiprocessor, if there are enough rows."""
    programs = triton.cdiv(width, lanes_of(width, columns) * columns) * groups
    steps = triton.cdiv(members, _ROWS)
    return triton.cdiv(steps, min(steps, triton.cdiv(8 * num_sms, programs))) * _ROWS


class _Sweep(NamedTuple):
    """The rows whose columns are summed, and how they are shared out."""

    logits: Tensor  # (M, K), M > 0
    temperature: Tensor
    inner: int
    groups: int

    @property
    def members(self) -> int:
        return self.logits.shape[0] // self.groups

    @property
    def columns(self) -> int:
        return 8 if narrow(self.logits) else 4

    @property
    def part(self) -> int:
        num_sms = device_properties(self.logits.device).num_sms
        return rows_of_a_part(self.members, self.groups, self.logits.shape[1], self.columns, num_sms)

    def parts(self, count: int) -> tuple[Tensor, ...]:
        """``count`` new tensors (parts, G, K)."""
        shape = triton.cdiv(self.members, self.part), self.groups, self.logits.shape[1]
        return new(self.logits, torch.float32, *(shape,) * count)

    def run(self, bias: Tensor | None, rows: tuple, top: Tensor | None, total: Tensor, first: int, width: int) -> None:
        """Fills ``width`` columns from ``first`` on of (top, sum), or of the sum with a bias and the states of the rows."""
        lanes_, columns = lanes_of(width, self.columns), self.columns
        sizes = self.logits.stride(0), self.logits.shape[1], first, width
        unit = unit_of(columns, *sizes)
        launch(
            columns_kernel, (triton.cdiv(width, lanes_ * columns) * self.groups, total.shape[0]), self.logits, bias,
            self.temperature, *rows, top, total, self.members, self.inner, self.groups, self.part,
            *(size // unit for size in sizes), GROUPED=self.groups > 1, UNIT=unit, R=_ROWS, L=lanes_, V=columns,
            num_warps=max(1, lanes_ // 32),
        )  # fmt: skip


def sinkhorn_start(logits: Tensor, temperature: Tensor, inner: int, groups: int) -> tuple[Tensor, Tensor]:
    """logits (M, K) -> (G, K) both: of each group's rows the largest logit of each column, and sum exp((x - top) / T)."""
    shape = groups, logits.shape[1]
    if logits.shape[0] == 0:
        top, total = new(logits, torch.float32, shape, shape)
        return top.fill_(-torch.inf), total.zero_()
    sweep = _Sweep(dense(logits), temperature, inner, groups)
    with on_device(logits):
        top, total = sweep.parts(2)
        sweep.run(None, (None, None), top, total, 0, shape[1])
        top, total = merge_states(top, total, temperature, groups * shape[1], columns=True)
    return top.view(shape), total.view(shape)


def sinkhorn_step(logits: Tensor, bias: Tensor, temperature: Tensor, heads: Sequence[int], inner: int) -> Tensor:
    """logits (M, K), bias (G, K) -> (G, K): the sum over each group's rows of softmax((x + bias) / T), head by head."""
    (sums,) = new(logits, torch.float32, tuple(bias.shape))
    if logits.shape[0] == 0:
        return sums.zero_()
    logits, bias = dense(logits), bias.contiguous()
    sweep = _Sweep(logits, temperature, inner, bias.shape[0])
    first = 0
    with on_device(logits):
        (parts,) = sweep.parts(1)
        for width in heads:
            rows = states((Rows(logits, bias, None, inner, False),), temperature, first, width)
            sweep.run(bias, rows, None, parts, first, width)
            first += width
        add_parts(parts, sums)
    return sums
