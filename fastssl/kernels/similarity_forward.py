"""The forward and the one-pass forward of the masked similarity log-sum-exp: tiles that stream columns past owned rows.

    s2_ij  = log2(e) (scale <x_i, y_j> + y_bias_j),  -inf where x_id_i = y_id_j      x (N, D), y (M, D); base 2, so exp2 only
    lse_i = ln(2) log2 sum_j 2^s2_ij                mean_i = sum_j 2^(s2_ij - l_i) y_j,   l_i = log2(e) lse_i
    rank_i = #{j : s_ij > threshold_i}

A program owns block_m rows, streams the columns of one split, and keeps for each row a maximum, a sum, a count and, in the one-pass
forward, the sum of p y_j with p = 2^(s2_ij - maximum). Where ``tiles.row_bounds`` proves the logits small, no maximum is taken. The
splits are merged in a fixed order. The memory of y may be that of a dense (D, M). Rows that are too wide for a tile go to
``similarity_wide``, large symmetric problems to ``similarity_triangle``.

U = 2 N M D FLOP: the forward takes U, the one-pass forward 2U. Each program reads its rows and the columns of its split once, out
of L2.
"""

import torch
import triton
import triton.language as tl

from fastssl.ops._operands import Similarity, SimilarityArguments

from . import similarity_triangle as triangle
from . import similarity_wide as wide
from .host.device import device_properties
from .host.launch import launch
from .host.tensors import new, rows_of
from .tiles.config import pick_triangle, tile_fits
from .tiles.layout import dense_either_way, in_precision, laid_out, precision_of
from .tiles.load import (
    count_above,
    extent,
    load_bias,
    load_ids,
    load_rows,
    load_threshold,
    masked_dots,
    masked_logits,
    signed_unit,
)
from .tiles.merge import INF, LOG2E, Partials, Results, load_scale, merge, to_lse, under_a_top
from .tiles.plan import plan, tile_options
from .tiles.row_bounds import is_small, pays, row_bounds, variant
from .tiles.tf32 import operand


@triton.jit
def _online(s, top, total, acc, MEAN: tl.constexpr):
    """p = 2^(s - maximum so far), that maximum, and the running sums, of which the earlier part is scaled down to it."""
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == -INF, 0.0, new)
    p = tl.exp2(s - safe[:, None])
    fix = tl.exp2(top - safe)
    if MEAN:
        acc = acc * fix[:, None]
    return p, new, total * fix + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=["N"])  # all N share a compiled kernel; wide loads of y stored (D, M) need to know what divides M
def similarity_fwd_kernel(
    x_ptr, y_ptr, x_id_ptr, y_id_ptr, range_ptr, norm_ptr, bias_ptr, threshold_ptr, factor_ptr,
    top_ptr, sum_ptr, lse_ptr, peak_ptr, mean_ptr, rank_ptr, N, M, D, s_x, s_y, s_yd, scale, split_len,
    EVEN_M: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Maximum and sum (N,), with mean_ptr also the mean (N, D), and with threshold_ptr also the rank (N,). With lse_ptr the kernel
    also stores lse (N,), and -1 in peak (N,), since tiles do not look for peaks. Without lse_ptr it stores the partials of one
    split: maximum, sum, sum of p y, and count. Where the norms prove the logits small, no maximum is taken."""
    first = tl.program_id(0) * BM
    split = tl.program_id(1)
    rows = first + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    scale = load_scale(scale, factor_ptr)
    RANK: tl.constexpr = threshold_ptr is not None
    MEAN: tl.constexpr = mean_ptr is not None
    x = load_rows(x_ptr, first, N, D, s_x, BM, BD, False, EVEN_D)  # (BM, BD)
    if RANK:
        sign, unit = signed_unit(scale)
        x = (x * sign).to(x_ptr.dtype.element_ty)
    x_id = load_ids(x_id_ptr, rows, N)
    lowest, highest = extent(x_id, range_ptr)
    top = tl.full((BM,), -INF, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    rank = tl.zeros((BM,), tl.int32)
    threshold = load_threshold(threshold_ptr, rows, N)
    lo = split * split_len
    hi = tl.minimum(lo + split_len, M)
    BOUNDED: tl.constexpr = norm_ptr is not None
    small = False
    if BOUNDED:
        small = is_small(x, norm_ptr, tl.cdiv(M, BN), scale)
        top = tl.where(small, tl.zeros((BM,), tl.float32), top)
    for start in range(lo, hi, BN):
        cols = start + tl.arange(0, BN)
        y = load_rows(y_ptr, start, M, D, s_y, BN, BD, EVEN_M, EVEN_D, s_yd)  # (BN, BD)
        if RANK:  # x has the sign of scale; thresholds are compared in natural units
            dots = masked_dots(x, y, x_id, y_id_ptr, cols, M, EVEN_M, PRECISION)
            rank += count_above(dots, scale, threshold, bias_ptr, cols, M)
            s = dots * unit
        else:
            s = masked_logits(x, y, x_id, lowest, highest, y_id_ptr, range_ptr, start, M, scale * LOG2E, 0.0, EVEN_M, PRECISION, BN)
        if bias_ptr is not None:
            s += load_bias(bias_ptr, cols, M)[None, :]
        if BOUNDED:
            if small:
                p = tl.exp2(s)
                total += tl.sum(p, 1)
            else:
                p, top, total, acc = _online(s, top, total, acc, MEAN)
        else:
            p, top, total, acc = _online(s, top, total, acc, MEAN)
        if MEAN:
            acc = tl.dot(operand(p, y.dtype, PRECISION), y, acc, input_precision=PRECISION)
    inside = rows < N
    at = rows.to(tl.int64)
    if lse_ptr is None:  # one split's partials; adding these 64-bit offsets to the rows instead would spill
        skip = split.to(tl.int64) * N
        top_ptr += skip
        sum_ptr += skip
        if RANK:
            rank_ptr += skip
        if MEAN:
            mean_ptr += skip * D
    if BOUNDED and not MEAN:  # with a mean, the sum keeps the base in which acc was summed
        top, total = under_a_top(top, total)
    tl.store(top_ptr + at, top, mask=inside)
    tl.store(sum_ptr + at, total, mask=inside)
    if lse_ptr is not None:
        tl.store(lse_ptr + at, to_lse(top, total), mask=inside)
        tl.store(peak_ptr + at, tl.full((BM,), -1, tl.int32), mask=inside)
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if RANK:
        tl.store(rank_ptr + at, rank, mask=inside)
    if MEAN:
        tl.store(mean_ptr + at[:, None] * D + dims[None, :], acc, mask=inside[:, None] & (dims[None, :] < D))


def _new_results(operands: Similarity, want_mean: bool) -> Results:
    """Empty lse (N,), state (2, N), peak (N,), mean (N, D) or None, and rank (N,) or without a threshold (0,)."""
    x = operands.x
    n, d = x.shape
    lse, state, *means = new(x, torch.float32, (n,), (2, n), *([(n, d)] if want_mean else []))
    peak, rank = new(x, torch.int32, (n,), (0 if operands.threshold is None else n,))
    return Results(lse, state, peak, means[0] if want_mean else None, rank)


def forward(arguments: SimilarityArguments, want_mean: bool) -> Results:
    """lse (N,), state (2, N), peak (N,), mean (N, D) or None, and rank (N,) or (0,)."""
    symmetric = arguments.y is None and arguments.y_bias is None and arguments.threshold is None and not want_mean
    operands = laid_out(arguments.operands(), dense_either_way)
    results = _new_results(operands, want_mean)
    x, y, *_, threshold = operands
    (n, d), m = x.shape, y.shape[0]
    precision = precision_of(x)
    if not tile_fits(n, m, d, x.dtype, precision):
        with torch.autocast(x.device.type, enabled=False):
            wide.forward(operands, results)
        return results
    operands = in_precision(operands, precision)
    bounded = threshold is None and pays(n, m)
    arch = device_properties(x.device).arch
    if symmetric and bounded and (tile := pick_triangle(n, operands.x_id, arch, x.dtype, d, precision)):
        triangle.forward(operands, results, tile, tile_options(d, tile, precision))
    else:
        _by_tiles(operands, results, bounded, precision)
    return results


def _by_tiles(operands: Similarity, results: Results, bounded: bool, precision: str) -> None:
    """Fills the results, with the mean if there is one and the rank if there is a threshold. If ``bounded``, ``row_bounds`` looks
    at the columns first."""
    x, y, scale, scale_factor, x_id, y_id, y_bias, threshold = operands
    lse, state, peak, mean, rank = results
    (n, d), m = x.shape, y.shape[0]
    want_mean, counted = mean is not None, threshold is not None
    kernel = ("one_pass" if want_mean else "fwd") + variant(bounded, m, y_id, y_bias, threshold)
    config, splits, length, options = plan(kernel, n, m, x, precision)
    top, total, acc, count = *rows_of(state), mean, rank if counted else None
    if splits > 1:
        top, total, *means = new(x, torch.float32, (splits, n), (splits, n), *([(splits, n, d)] if want_mean else []))
        acc = means[0] if want_mean else None
        count = new(x, torch.int32, (splits, n))[0] if counted else None
    final = (lse, peak) if splits == 1 else (None, None)
    norms = y_bias is None and not (want_mean and x.dtype == torch.float16)  # float16 cannot hold 2^60
    ranges, norm = row_bounds(y, y_id, config.block_n, norms) if bounded else (None, None)
    launch(
        similarity_fwd_kernel, (triton.cdiv(n, config.block_m), splits),
        x, y, x_id, y_id, ranges, norm, y_bias, threshold, scale_factor, top, total, *final, acc, count,
        n, m, d, x.stride(0), *y.stride(), scale, length, EVEN_M=m % config.block_n == 0, **options,
    )  # fmt: skip
    if splits > 1:
        merge(Partials(top, total, None, acc, count), results)
