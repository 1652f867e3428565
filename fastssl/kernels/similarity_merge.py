"""What tiles and chunks of the similarities share: the terms of a row, and partial results merged in a fixed order.

    l_i = log2(e) lse_i, base 2 throughout
    lse = ln(2) (t + log2 sum_k 2^(t_k - t) sum_k),   mean = sum_k 2^(t_k - t) acc_k / sum_k 2^(t_k - t) sum_k,   t = max_k t_k
    rank = sum_k count_k,   out = scale sum_k part_k,   dot_a = <a, sum_k part_k>

Bytes: every partial read once, the result written once; no atomics, so the same bits each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    """ln(2) (top + log2(total)) rounded once: at 100, a second rounding would cost the weights of the backward 4e-6. The whole
    part of the logarithm is taken out first, for sums that were taken under no maximum."""
    ordinary = (total > 0.0) & (total < INF)
    whole = tl.where(ordinary, tl.floor(tl.log2(total)), 0.0)
    rest = tl.log2(total * tl.exp2(-whole))
    return ((top.to(tl.float64) + whole.to(tl.float64) + rest.to(tl.float64)) * LN2).to(tl.float32)


@triton.jit
def _extremes(low, high, most, lse_ptr, g_ptr, N, s_g, NORMALISE: tl.constexpr, BLOCK: tl.constexpr):
    """Running minimum and maximum of lse (N,), and NORMALISE: the largest |g| of rows that have a column, each (BLOCK,)."""
    for start in range(0, N, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        lse = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)  # (BLOCK,)
        low = tl.minimum(low, tl.where(rows < N, lse, INF))
        high = tl.maximum(high, tl.where(rows < N, lse, -INF))
        if NORMALISE:
            g = tl.load(g_ptr + rows * s_g, mask=rows < N, other=0.0).to(tl.float32)  # (BLOCK,)
            most = tl.maximum(most, tl.where(lse == -INF, 0.0, tl.abs(g)))
    return low, high, most


@triton.jit
def _store_terms(lse_ptr, g_ptr, l_ptr, w_ptr, v_ptr, N, s_g, centre, gain, BLOCK: tl.constexpr):
    for start in range(0, N, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        lse = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)  # (BLOCK,)
        g = tl.load(g_ptr + rows * s_g, mask=rows < N, other=0.0).to(tl.float32) * gain  # (BLOCK,)
        dead = lse == -INF
        exact = tl.where(dead, 0.0, lse).to(tl.float64) * LOG2E
        near = exact.to(tl.float32)
        away = centre - exact
        far = away.to(tl.float32)
        w = g * tl.exp2((near - exact).to(tl.float32))
        v = g * tl.exp2(far) * tl.exp2((away - far).to(tl.float32))
        tl.store(l_ptr + rows, tl.where(dead, INF, near), mask=rows < N)
        tl.store(w_ptr + rows, tl.where(dead, 0.0, w), mask=rows < N)
        tl.store(v_ptr + rows, tl.where(dead, 0.0, v), mask=rows < N)


@triton.jit(do_not_specialize=["N", "N2"])
def row_terms_kernel(
    lse_ptr, g_ptr, l_ptr, w_ptr, v_ptr, lse2_ptr, g2_ptr, l2_ptr, w2_ptr, v2_ptr, stats_ptr, N, s_g, N2, s_g2,
    NORMALISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each row, with l log2(e) lse exactly and l' its float32: l', w = gain g 2^(l' - l), v = gain g 2^(c - l); (N,) each.

    stats (3,) = c, whether all l lie within 64 of each other, 1 / gain. A row with every column excluded gets +inf, 0, 0.
    gain brings float16 weights g p, as small as 2^-32 for a mean over 65,536 rows, to at most 2^14; it is 1 for other types.
    The second vectors, (N2,) where given, share c, gain and the question. One program; reads 16N bytes, writes 12N.
    """
    low = tl.full((BLOCK,), INF, tl.float32)
    high = tl.full((BLOCK,), -INF, tl.float32)
    most = tl.zeros((BLOCK,), tl.float32)
    low, high, most = _extremes(low, high, most, lse_ptr, g_ptr, N, s_g, NORMALISE, BLOCK)
    if lse2_ptr is not None:
        low, high, most = _extremes(low, high, most, lse2_ptr, g2_ptr, N2, s_g2, NORMALISE, BLOCK)
    lowest = tl.min(low, 0) * LOG2E
    highest = tl.max(high, 0) * LOG2E
    centre = (lowest + highest) * 0.5
    gain = 1.0
    if NORMALISE:
        peak = tl.max(most, 0)
        gain = tl.where(peak > 1e-30, 16384.0 / peak, 1.0)
    tl.store(stats_ptr, centre)
    tl.store(stats_ptr + 1, tl.where(highest - lowest < 64.0, 1.0, 0.0))
    tl.store(stats_ptr + 2, 1.0 / gain)
    _store_terms(lse_ptr, g_ptr, l_ptr, w_ptr, v_ptr, N, s_g, centre, gain, BLOCK)
    if lse2_ptr is not None:
        _store_terms(lse2_ptr, g2_ptr, l2_ptr, w2_ptr, v2_ptr, N2, s_g2, centre, gain, BLOCK)


def row_terms(
    lse: Tensor,  # (N,)
    g: Tensor,  # (N,)
    dtype: torch.dtype,
    lse2: Tensor | None = None,  # (N2,)
    g2: Tensor | None = None,  # (N2,)
) -> tuple[Tensor, Tensor | None, Tensor]:
    """terms (3, N) = l, w, v, the same (3, N2) or None, and stats (3,), float32, left on the device; aligned to 64 bytes."""

    def room(t):
        return torch.empty((3, triton.cdiv(len(t), 16) * 16), dtype=torch.float32, device=t.device)[:, : len(t)]

    terms, terms2 = room(lse), None if lse2 is None else room(lse2)
    second, count2, s_g2 = ((None,) * 5, 0, 0) if lse2 is None else ((lse2, g2, *terms2), len(lse2), g2.stride(0))
    stats = torch.empty(3, dtype=torch.float32, device=lse.device)
    row_terms_kernel[(1,)](
        lse, g, *terms, *second, stats, len(lse), g.stride(0), count2, s_g2, dtype == torch.float16, 4096, num_warps=16
    )
    return terms, terms2, stats


@triton.jit(do_not_specialize=["N", "SPLITS"])
def merge_kernel(
    top_ptr, sum_ptr, acc_ptr, count_ptr, lse_ptr, mean_ptr, rank_ptr, N, D, SPLITS, BM: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Partials (SPLITS, N[, D]) -> lse (N,), mean (N, D), rank (N,). grid (N / BM, D / BD)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = rows < N
    tile = inside[:, None] & (dims[None, :] < D)
    best = tl.full((BM,), -INF, tl.float32)
    for split in range(SPLITS):
        at = tl.cast(split, tl.int64) * N + rows
        best = tl.maximum(best, tl.load(top_ptr + at, mask=inside, other=-INF))  # (BM,)
    safe = tl.where(best == -INF, 0.0, best)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    rank = tl.zeros((BM,), tl.int32)
    for split in range(SPLITS):
        at = tl.cast(split, tl.int64) * N + rows
        weight = tl.exp2(tl.load(top_ptr + at, mask=inside, other=-INF) - safe)
        total += weight * tl.load(sum_ptr + at, mask=inside, other=0.0)
        if count_ptr is not None:
            rank += tl.load(count_ptr + at, mask=inside, other=0)  # (BM,)
        if mean_ptr is not None:
            acc += weight[:, None] * tl.load(acc_ptr + at[:, None] * D + dims[None, :], mask=tile, other=0.0)  # (BM, BD)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + rows, to_lse(best, total), mask=inside)
        if count_ptr is not None:
            tl.store(rank_ptr + rows, rank, mask=inside)
    if mean_ptr is not None:
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(mean_ptr + rows[:, None].to(tl.int64) * D + dims[None, :], acc, mask=tile)


def merge(
    top: Tensor,  # (SPLITS, N)
    total: Tensor,  # (SPLITS, N)
    acc: Tensor | None,  # (SPLITS, N, D)
    lse: Tensor,  # (N,)
    mean: Tensor | None,  # (N, D)
    count: Tensor | None = None,  # (SPLITS, N) int32
    rank: Tensor | None = None,  # (N,) int32
) -> None:
    """Fill lse, mean and rank, those that are given; 2,048 elements a program."""
    splits, rows = top.shape
    width = 1 if acc is None else acc.shape[2]
    bd = min(triton.next_power_of_2(width), 256)
    bm = 128 if acc is None else 2048 // bd
    grid = (triton.cdiv(rows, bm), triton.cdiv(width, bd))
    merge_kernel[grid](top, total, acc, count, lse, mean, rank, rows, width, splits, bm, bd)


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
    finish_kernel[(triton.cdiv(rows, bm),)](part, a, stats, factor, out, dot, rows, width, s_a, scale, dot_scale, splits, bm, bd)
