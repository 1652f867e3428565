"""Partial results of tiles and chunks, merged in a fixed order.

    state_i = (t, S):  t = max_k t_k,  S = sum_k 2^(t_k - t) sum_k,  base 2 throughout       peak_i: where the largest logit lies
    lse = ln(2) (t + log2 S),   mean = sum_k 2^(t_k - t) acc_k / S
    rank = sum_k count_k,   out = scale sum_k part_k,   dot_a = <a, sum_k part_k>

Where the logits are proved small, no maximum is taken. Then t is log2 of the sum, rounded up to a whole number, since no logit can
exceed that. Every partial is read once and the result is written once; without atomics the bits are the same each time.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import cut

from ..host.launch import launch
from ..host.tensors import rows_of

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


@triton.jit
def load_scale(scale, factor_ptr):
    """scale * scale_factor; the factor is read on the device."""
    if factor_ptr is not None:
        scale = scale * tl.load(factor_ptr).to(tl.float32)
    return scale


@triton.jit
def to_lse(top, total):
    """ln(2) (top + log2(total)), rounded once. The whole part of the logarithm is taken out first, for the sake of large and small
    sums, which arise where no maximum was subtracted."""
    ordinary = (total > 0.0) & (total < INF)
    whole = tl.where(ordinary, tl.floor(tl.log2(total)), 0.0)
    rest = tl.log2(total * tl.exp2(-whole))
    return ((top.to(tl.float64) + whole.to(tl.float64) + rest.to(tl.float64)) * LN2).to(tl.float32)


@triton.jit
def under_a_top(top, total):
    """States (t, S) of rows or columns. Where no maximum was taken, ``top`` is 0 and logits may exceed it. The states that are
    returned have S in (1/2, 1] there, and no logit exceeds t. A true maximum of 0 still bounds the logits afterwards."""
    ordinary = (top == 0.0) & (total > 0.0) & (total < INF)
    whole = tl.where(ordinary, tl.ceil(tl.log2(total)), 0.0)
    return top + whole, total * tl.exp2(-whole)


@triton.jit
def load_state(top_ptr, sum_ptr, at, inside):
    """States (t, S) as ``under_a_top`` makes them, of stored ones for which perhaps no maximum was taken. S < 0 says that the
    stored t is a whole number but not a maximum."""
    top, total = tl.load(top_ptr + at, mask=inside, other=-INF), tl.load(sum_ptr + at, mask=inside, other=0.0)
    size = tl.abs(total)
    base = tl.where(total < 0.0, top, 0.0)
    top, size = under_a_top(top - base, size)
    return tl.where(size == 0.0, -INF, top + base), size


class Partials(NamedTuple):
    """What the splits of a sweep, or its chunks, leave of each row; None stands for what is not wanted."""

    top: Tensor  # (SPLITS, N)
    total: Tensor  # (SPLITS, N)
    peak: Tensor | None = None  # (SPLITS, N) int32
    acc: Tensor | None = None  # (SPLITS, N, D)
    counts: Tensor | None = None  # (SPLITS, N) int32


class Results(NamedTuple):
    """What a sweep leaves of each row; None stands for what is not wanted."""

    lse: Tensor  # (N,)
    state: Tensor  # (2, N)
    peak: Tensor  # (N,) int32, -1 where only splits of tiles were merged
    mean: Tensor | None = None  # (N, D)
    rank: Tensor | None = None  # (N,) int32

    def of(self, rows: slice) -> "Results":
        """The results of some rows."""
        rank = self.rank if self.rank is None or self.rank.numel() == 0 else self.rank[rows]
        return Results(self.lse[rows], self.state[:, rows], self.peak[rows], cut(self.mean, rows), rank)


class Gradients(NamedTuple):
    """What a backward fills; None stands for what is not wanted. dscale is the sum of the dots."""

    dx: Tensor | None  # (N, D)
    dy: Tensor | None  # (M, D)
    dbias: Tensor | None  # (M,)
    dots: Tensor | None  # (N,), or (M,) where only y is swept


@triton.jit
def _partial(top_ptr, sum_ptr, acc_ptr, at, inside):
    """(t, S) of one split. Where there is acc, t stays the base in which acc was summed."""
    if acc_ptr is not None:
        return tl.load(top_ptr + at, mask=inside, other=-INF), tl.load(sum_ptr + at, mask=inside, other=0.0)
    else:
        return load_state(top_ptr, sum_ptr, at, inside)


@triton.jit(do_not_specialize=["N", "SPLITS"])
def merge_kernel(
    top_ptr, sum_ptr, peak_ptr, acc_ptr, count_ptr, lse_ptr, all_top_ptr, all_sum_ptr, all_peak_ptr, mean_ptr, rank_ptr,
    N, D, SPLITS, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Partials (SPLITS, N[, D]) -> lse, all_top, all_sum, all_peak (N,), mean (N, D), rank (N,). grid (N / BM, D / BD)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = rows < N
    tile = inside[:, None] & (dims[None, :] < D)
    best = tl.full((BM,), -INF, tl.float32)
    peak = tl.full((BM,), -1, tl.int32)
    for split in range(SPLITS):
        top, _ = _partial(top_ptr, sum_ptr, acc_ptr, tl.cast(split, tl.int64) * N + rows, inside)  # (BM,)
        if peak_ptr is not None:
            at_peak = tl.load(peak_ptr + tl.cast(split, tl.int64) * N + rows, mask=inside, other=-1)
            peak = tl.where(top > best, at_peak, peak)
        best = tl.maximum(best, top)
    safe = tl.where(best == -INF, 0.0, best)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    rank = tl.zeros((BM,), tl.int32)
    for split in range(SPLITS):
        at = tl.cast(split, tl.int64) * N + rows
        top, part = _partial(top_ptr, sum_ptr, acc_ptr, at, inside)
        weight = tl.exp2(top - safe)
        total += weight * part
        if count_ptr is not None:
            rank += tl.load(count_ptr + at, mask=inside, other=0)  # (BM,)
        if mean_ptr is not None:
            acc += weight[:, None] * tl.load(acc_ptr + at[:, None] * D + dims[None, :], mask=tile, other=0.0)  # (BM, BD)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + rows, to_lse(best, total), mask=inside)
        if all_top_ptr is not None:
            tl.store(all_top_ptr + rows, best, mask=inside)
            tl.store(all_sum_ptr + rows, total, mask=inside)
            tl.store(all_peak_ptr + rows, peak, mask=inside)
        if count_ptr is not None:
            tl.store(rank_ptr + rows, rank, mask=inside)
    if mean_ptr is not None:
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(mean_ptr + rows[:, None].to(tl.int64) * D + dims[None, :], acc, mask=tile)


def merge(partials: Partials, results: Results) -> None:
    """Fills those of the results that are given. A program takes 128 rows, or 2,048 elements of a mean."""
    splits, rows = partials.top.shape
    width = 1 if partials.acc is None else partials.acc.shape[2]
    bd = min(triton.next_power_of_2(width), 256)
    bm = 128 if partials.acc is None else 2048 // bd
    lse, state, peak, mean, rank = results
    grid = (triton.cdiv(rows, bm), triton.cdiv(width, bd))
    rank = None if partials.counts is None else rank
    launch(merge_kernel, grid, *partials, lse, *rows_of(state), peak, mean, rank, rows, width, splits, BM=bm, BD=bd)


@triton.jit(do_not_specialize=["N", "SPLITS"])
def finish_kernel(
    part_ptr, a_ptr, stats_ptr, factor_ptr, out_ptr, dot_ptr, N, D, s_a, scale, dot_scale, SPLITS,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """part (SPLITS, N, D) -> out (N, D) = scale / gain sum part, dot (N,) = dot_scale / gain <a, sum part>. grid (N / BM)."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < N
    ungain = 1.0
    if stats_ptr is not None:
        ungain = tl.load(stats_ptr + 2)
    factor = load_scale(scale, factor_ptr) * ungain
    dot = tl.zeros((BM,), tl.float32)
    for start in range(0, D, BD):
        dims = start + tl.arange(0, BD)
        tile = inside[:, None] & (dims[None, :] < D)
        total = tl.zeros((BM, BD), tl.float32)
        for split in range(SPLITS):
            at = tl.cast(split, tl.int64) * N + rows
            total += tl.load(part_ptr + at[:, None] * D + dims[None, :], mask=tile, other=0.0)  # (BM, BD)
        if out_ptr is not None:
            tl.store(out_ptr + rows[:, None] * D + dims[None, :], (total * factor).to(out_ptr.dtype.element_ty), mask=tile)
        if dot_ptr is not None:
            a = tl.load(a_ptr + rows[:, None] * s_a + dims[None, :], mask=tile, other=0.0)  # (BM, BD)
            dot += tl.sum(a.to(tl.float32) * total, 1)
    if dot_ptr is not None:
        tl.store(dot_ptr + rows, dot * (ungain * dot_scale), mask=inside)


def finish(
    part: Tensor,  # (SPLITS, N, D) float32
    stats: Tensor | None,
    scale: float,
    factor: Tensor | None,
    out: Tensor | None,  # (N, D)
    a: Tensor | None = None,  # (N, D)
    dot: Tensor | None = None,  # (N,)
    dot_scale: float = 1.0,
) -> None:
    """Sums the partials into ``out`` and, with ``a``, the dots of each row; a program takes 2,048 elements at a time."""
    splits, rows, width = part.shape
    bd = min(triton.next_power_of_2(width), 256)
    bm = 2048 // bd
    s_a = 0 if a is None else a.stride(0)
    grid = (triton.cdiv(rows, bm),)
    launch(finish_kernel, grid, part, a, stats, factor, out, dot, rows, width, s_a, scale, dot_scale, splits, BM=bm, BD=bd)
