"""What tiles and chunks of the similarities share: the terms of a row, and partial results merged in a fixed order.

    state_i = (t, S):  t = max_k t_k,  S = sum_k 2^(t_k - t) sum_k,  base 2 throughout       peak_i: where the largest logit lies
    lse = ln(2) (t + log2 S),   mean = sum_k 2^(t_k - t) acc_k / S
    rank = sum_k count_k,   out = scale sum_k part_k,   dot_a = <a, sum_k part_k>

The backward takes p_ij = 2^min(s2_ij - t_i, 0) / S_i. Where logits are proved small no maximum is taken; t is then the least whole
number that no logit exceeds for certain, log2 of their sum rounded up.
Bytes: every partial read once, the result written once; no atomics, so the same bits each time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..host.launch import launch
from ..host.tensors import new, rows_of

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


def new_rank(rows: int, threshold: Tensor | None, device: torch.device) -> Tensor:
    """Empty int32 (rows,), or (0,) where nothing is counted."""
    return torch.empty(0 if threshold is None else rows, dtype=torch.int32, device=device)


@triton.jit
def load_scale(scale, factor_ptr):
    """scale * scale_factor, the factor read on the device."""
    if factor_ptr is not None:
        scale = scale * tl.load(factor_ptr).to(tl.float32)
    return scale


@triton.jit
def to_lse(top, total):
    """ln(2) (top + log2(total)) rounded once. The whole part of the logarithm is taken out first, for sums that were taken under
    no maximum."""
    ordinary = (total > 0.0) & (total < INF)
    whole = tl.where(ordinary, tl.floor(tl.log2(total)), 0.0)
    rest = tl.log2(total * tl.exp2(-whole))
    return ((top.to(tl.float64) + whole.to(tl.float64) + rest.to(tl.float64)) * LN2).to(tl.float32)


@triton.jit
def under_a_top(top, total):
    """States (t, S) of rows or columns. Where no maximum was taken, ``top`` is 0 and the logits may exceed it: afterwards S is in
    (1/2, 1] there, and no logit exceeds t. A true maximum of 0 stays one."""
    ordinary = (top == 0.0) & (total > 0.0) & (total < INF)
    whole = tl.where(ordinary, tl.ceil(tl.log2(total)), 0.0)
    return top + whole, total * tl.exp2(-whole)


@triton.jit
def load_state(top_ptr, sum_ptr, at, inside):
    """States (t, S) that may have been left under no maximum, as ``under_a_top`` makes them; or, which S < 0 says, under a whole
    number that is none."""
    top, total = tl.load(top_ptr + at, mask=inside, other=-INF), tl.load(sum_ptr + at, mask=inside, other=0.0)
    size = tl.abs(total)
    base = tl.where(total < 0.0, top, 0.0)
    top, size = under_a_top(top - base, size)
    return tl.where(size == 0.0, -INF, top + base), size


# Rows and columns whose l = t + log2 S lie within +-FAR may share one exponential, with nothing to keep a weight at most 1. A logit
# then has units of at most 2^-11: two products of a tile, if they differ at all, change a weight by less than the rounding of
# 16-bit or TF32 operands. A tile in "ieee" float32 adds up each logit in one order wherever it lies.
FAR = tl.constexpr(4096.0)


@triton.jit
def _extremes(low, high, most, top_ptr, total_ptr, g_ptr, N, s_g, NORMALISE: tl.constexpr, BLOCK: tl.constexpr):
    """Running minimum and maximum of l = t + log2 S over N rows, and NORMALISE: the largest |g| of rows that have a column, each
    (BLOCK,)."""
    for start in range(0, N, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        top = tl.load(top_ptr + rows, mask=rows < N, other=0.0)  # (BLOCK,)
        total = tl.load(total_ptr + rows, mask=rows < N, other=1.0)  # (BLOCK,)
        lse2 = top + tl.log2(total)  # -inf where everything is excluded
        low = tl.minimum(low, tl.where(rows < N, lse2, INF))
        high = tl.maximum(high, tl.where(rows < N, lse2, -INF))
        if NORMALISE:
            g = tl.load(g_ptr + rows * s_g, mask=rows < N, other=0.0).to(tl.float32)  # (BLOCK,)
            most = tl.maximum(most, tl.where(total == 0.0, 0.0, tl.abs(g)))
    return low, high, most


@triton.jit
def _store_terms(top_ptr, total_ptr, g_ptr, l_ptr, w_ptr, v_ptr, N, s_g, centre, gain, BLOCK: tl.constexpr):
    for start in range(0, N, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        top = tl.load(top_ptr + rows, mask=rows < N, other=0.0)  # (BLOCK,)
        total = tl.load(total_ptr + rows, mask=rows < N, other=1.0)  # (BLOCK,)
        g = tl.load(g_ptr + rows * s_g, mask=rows < N, other=0.0).to(tl.float32) * gain  # (BLOCK,)
        dead = total == 0.0
        w = g / tl.where(dead, 1.0, total)
        away = centre.to(tl.float64) - tl.where(dead, centre, top).to(tl.float64)
        far = away.to(tl.float32)
        v = w * tl.exp2(far) * tl.exp2((away - far).to(tl.float32))
        tl.store(l_ptr + rows, tl.where(dead, INF, top), mask=rows < N)
        tl.store(w_ptr + rows, tl.where(dead, 0.0, w), mask=rows < N)
        tl.store(v_ptr + rows, tl.where(dead, 0.0, v), mask=rows < N)


@triton.jit(do_not_specialize=["N", "N2"])
def row_terms_kernel(
    top_ptr, total_ptr, g_ptr, l_ptr, w_ptr, v_ptr, top2_ptr, total2_ptr, g2_ptr, l2_ptr, w2_ptr, v2_ptr, stats_ptr,
    N, s_g, N2, s_g2, NORMALISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each row, from its state (t, S): l' = t, w = gain g / S, v = w 2^(c - t); (N,) each, so that p g = w 2^(s2 - l').

    stats (3,) = c, whether all t + log2 S lie within 64 of each other and within +-FAR, 1 / gain. A row with every column excluded
    gets +inf, 0, 0. gain brings float16 weights g p, as small as 2^-32 for a mean over 65,536 rows, to at most 2^14; it is 1 for
    other types. The second vectors, (N2,) where given, share c, gain and the question. One program; reads 20N bytes, writes 12N.
    """
    low = tl.full((BLOCK,), INF, tl.float32)
    high = tl.full((BLOCK,), -INF, tl.float32)
    most = tl.zeros((BLOCK,), tl.float32)
    low, high, most = _extremes(low, high, most, top_ptr, total_ptr, g_ptr, N, s_g, NORMALISE, BLOCK)
    if top2_ptr is not None:
        low, high, most = _extremes(low, high, most, top2_ptr, total2_ptr, g2_ptr, N2, s_g2, NORMALISE, BLOCK)
    lowest = tl.min(low, 0)
    highest = tl.max(high, 0)
    centre = (lowest + highest) * 0.5
    gain = 1.0
    if NORMALISE:
        peak = tl.max(most, 0)
        gain = tl.where(peak > 1e-30, 16384.0 / peak, 1.0)
    narrow = (highest - lowest < 64.0) & (lowest > -FAR) & (highest < FAR)
    tl.store(stats_ptr, centre)
    tl.store(stats_ptr + 1, tl.where(narrow, 1.0, 0.0))
    tl.store(stats_ptr + 2, 1.0 / gain)
    _store_terms(top_ptr, total_ptr, g_ptr, l_ptr, w_ptr, v_ptr, N, s_g, centre, gain, BLOCK)
    if top2_ptr is not None:
        _store_terms(top2_ptr, total2_ptr, g2_ptr, l2_ptr, w2_ptr, v2_ptr, N2, s_g2, centre, gain, BLOCK)


def row_terms(
    state: Tensor,  # (2, N)
    g: Tensor,  # (N,)
    dtype: torch.dtype,
    state2: Tensor | None = None,  # (2, N2)
    g2: Tensor | None = None,  # (N2,)
) -> tuple[Tensor, Tensor | None, Tensor]:
    """terms (3, N) = l', w, v, the same (3, N2) or None, and stats (3,), float32, left on the device; aligned to 64 bytes."""

    vectors = (g,) if g2 is None else (g, g2)
    *terms, stats = new(g, torch.float32, *((3, triton.cdiv(len(v), 16) * 16) for v in vectors), (3,))
    terms = [t if t.shape[1] == len(v) else t[:, : len(v)] for t, v in zip(terms, vectors, strict=True)]
    first, terms2 = terms[0], None if g2 is None else terms[1]
    second, count2, s_g2 = (None,) * 6, 0, 0
    if g2 is not None:
        second, count2, s_g2 = (*rows_of(state2), g2, *rows_of(terms2)), len(g2), g2.stride(0)
    launch(
        row_terms_kernel, (1,), *rows_of(state), g, *rows_of(first), *second, stats, len(g), g.stride(0), count2, s_g2,
        NORMALISE=dtype == torch.float16, BLOCK=4096, num_warps=16,
    )  # fmt: skip
    return first, terms2, stats


class Partials(NamedTuple):
    """What the splits of a sweep, or its chunks, leave of each row; None for what nobody wants."""

    top: Tensor  # (SPLITS, N)
    total: Tensor  # (SPLITS, N)
    peak: Tensor | None = None  # (SPLITS, N) int32
    acc: Tensor | None = None  # (SPLITS, N, D)
    count: Tensor | None = None  # (SPLITS, N) int32


class Results(NamedTuple):
    """What a sweep leaves of each row; None for what nobody wants."""

    lse: Tensor  # (N,)
    state: Tensor | None = None  # (2, N)
    peak: Tensor | None = None  # (N,) int32, given with the state: -1 where only splits of tiles were merged
    mean: Tensor | None = None  # (N, D)
    rank: Tensor | None = None  # (N,) int32

    def of(self, rows: slice) -> "Results":
        """The results of some rows."""
        cut = lambda t: t if t is None or t.numel() == 0 else t[rows]  # noqa: E731
        return Results(cut(self.lse), self.state[:, rows], cut(self.peak), cut(self.mean), cut(self.rank))


@triton.jit
def _partial(top_ptr, sum_ptr, acc_ptr, at, inside):
    """(t, S) of one split; sums of 2^. y, where there are some, keep the base they were made in."""
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
    """Fill the results, those that are given; 2,048 elements a program."""
    splits, rows = partials.top.shape
    width = 1 if partials.acc is None else partials.acc.shape[2]
    bd = min(triton.next_power_of_2(width), 256)
    bm = 128 if partials.acc is None else 2048 // bd
    lse, state, peak, mean, rank = results
    kept = (None,) * 3 if state is None else (*rows_of(state), peak)
    grid = (triton.cdiv(rows, bm), triton.cdiv(width, bd))
    rank = None if partials.count is None else rank
    launch(merge_kernel, grid, *partials, lse, *kept, mean, rank, rows, width, splits, BM=bm, BD=bd)


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
    """Sum the partials into ``out`` and, with ``a``, the dots of each row; 2,048 elements a step."""
    splits, rows, width = part.shape
    bd = min(triton.next_power_of_2(width), 256)
    bm = 2048 // bd
    s_a = 0 if a is None else a.stride(0)
    grid = (triton.cdiv(rows, bm),)
    launch(finish_kernel, grid, part, a, stats, factor, out, dot, rows, width, s_a, scale, dot_scale, splits, BM=bm, BD=bd)
