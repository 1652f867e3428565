"""Row and column log-sum-exp of one similarity matrix in Triton, both from one sweep, and their gradients.

    s2_ij = log2(e) scale <x_i, y_j>,  -inf where x_id_i = y_id_j        x (N, D), y (M, D); base 2
    row_i = ln(2) log2 sum_j 2^s2_ij        column_j = ln(2) log2 sum_i 2^s2_ij        rank_i = #{j : s_ij > threshold_i}
    W_ij  = drow_i p_ij + dcolumn_j q_ij,  the softmax of each row and of each column
    dx = scale W y,  dy = scale W^T x,  dscale = <x, W y>

Forward: the row blocks form at most 32 groups, and a program owns one group and one split of the columns. It keeps the (maximum,
sum) of each row in registers. Each tile stores the (maximum, sum) of its columns in a slice of (groups, M) that belongs to the
program alone, and after each row block the program merges what this block stored with what the blocks before left. These are 32
bytes for each column and row block, beside the 2 D bytes of y. At the end the partials of rows and columns are merged in a fixed
order, without atomics.
Backward: ``similarity_bwd_kernel`` runs once with (a, b) = (x, y) and once with (y, x), each time with both OWN and STREAM.

Where ``tiles.row_bounds`` proves the logits small, both maxima are 0 and rows and columns share one exponential.

U = 2 N M D FLOP: the forward takes U, the backward 4U, or 3U in chunks.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import Similarity, factor_of

from . import similarity_wide as wide
from .host.device import device_properties, on_device
from .host.launch import launch
from .similarity_backward import row_owner
from .tiles.config import pick_groups, tile_fits
from .tiles.layout import dense_either_way, in_precision, laid_out, precision_of
from .tiles.load import (
    count_above,
    extent,
    fold_columns,
    load_ids,
    load_rows,
    load_threshold,
    masked_dots,
    masked_logits,
    online_sums,
    plain_sums,
    signed_unit,
)
from .tiles.merge import INF, LOG2E, Gradients, Partials, Results, load_scale, merge, to_lse, under_a_top
from .tiles.plan import tile_for, tile_options
from .tiles.row_bounds import is_small, pays, row_bounds, variant
from .tiles.terms import row_terms


@triton.jit
def _store_rows(top_ptr, sum_ptr, row_ptr, peak_ptr, rank_ptr, threshold_ptr, at, top, total, rank, inside):
    tl.store(top_ptr + at, top, mask=inside)
    tl.store(sum_ptr + at, total, mask=inside)
    if row_ptr is not None:
        tl.store(row_ptr + at, to_lse(top, total), mask=inside)
        tl.store(peak_ptr + at, tl.full(top.shape, -1, tl.int32), mask=inside)
    if threshold_ptr is not None:
        tl.store(rank_ptr + at, rank, mask=inside)


@triton.jit(do_not_specialize=["N"])
def similarity_cross_fwd_kernel(
    x_ptr, y_ptr, x_id_ptr, y_id_ptr, range_ptr, norm_ptr, threshold_ptr, factor_ptr,
    top_ptr, sum_ptr, row_ptr, peak_ptr, rank_ptr, column_ptr, column_sum_ptr,
    N, M, D, s_x, s_y, s_yd, scale, group_len, split_len, EVEN_N: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """column (groups, M): the partial maximum and sum of each column, with as much room again behind them where a group has several
    row blocks. With row_ptr, top and sum (N,) of the rows, their lse, and -1 in peak; without row_ptr, partials (splits, N)."""
    begin = tl.program_id(0) * group_len
    split = tl.program_id(1)
    lo = split * split_len
    hi = tl.minimum(lo + split_len, M)
    column_ptr += tl.program_id(0).to(tl.int64) * M
    column_sum_ptr += tl.program_id(0).to(tl.int64) * M
    more = tl.num_programs(0).to(tl.int64) * M
    scale = load_scale(scale, factor_ptr)
    sign, unit = signed_unit(scale)
    RANK: tl.constexpr = threshold_ptr is not None
    BOUNDED: tl.constexpr = norm_ptr is not None
    for first in range(begin, tl.minimum(begin + group_len, N), BM):
        rows = first + tl.arange(0, BM)
        inside = rows < N
        x = load_rows(x_ptr, first, N, D, s_x, BM, BD, EVEN_N, EVEN_D)  # (BM, BD)
        if RANK:
            x = (x * sign).to(x_ptr.dtype.element_ty)
        x_id = load_ids(x_id_ptr, rows, N)
        lowest, highest = extent(x_id, range_ptr)
        small = False
        if BOUNDED:
            small = is_small(x, norm_ptr, tl.cdiv(M, BN), scale)
        threshold = load_threshold(threshold_ptr, rows, N)
        top = tl.full((BM,), -INF, tl.float32)
        total = tl.zeros((BM,), tl.float32)
        rank = tl.zeros((BM,), tl.int32)
        behind = tl.where(first > begin, more, 0)
        for start in range(lo, hi, BN):
            cols = start + tl.arange(0, BN)
            y = load_rows(y_ptr, start, M, D, s_y, BN, BD, EVEN_M, EVEN_D, s_yd)  # (BN, BD)
            if RANK:
                dots = masked_dots(x, y, x_id, y_id_ptr, cols, M, EVEN_M, PRECISION)
                rank += count_above(dots, scale, threshold, None, cols, M)
                s = dots * unit
            else:
                s = masked_logits(
                    x, y, x_id, lowest, highest, y_id_ptr, range_ptr, start, M, scale * LOG2E, 0.0, EVEN_M, PRECISION, BN
                )
            if not EVEN_N:
                s = tl.where(inside[:, None], s, -INF)
            if BOUNDED:
                if small:
                    top, total, column, column_sum = plain_sums(s, total, BM, BN)
                else:
                    top, total, column, column_sum = online_sums(s, top, total)
            else:
                top, total, column, column_sum = online_sums(s, top, total)
            tl.store(column_ptr + behind + cols, column, mask=cols < M)
            tl.store(column_sum_ptr + behind + cols, column_sum, mask=cols < M)
        if BOUNDED:
            top, total = under_a_top(top, total)
        at = rows.to(tl.int64)
        if row_ptr is None:
            at += split.to(tl.int64) * N
        _store_rows(top_ptr, sum_ptr, row_ptr, peak_ptr, rank_ptr, threshold_ptr, at, top, total, rank, inside)
        if first > begin:
            tl.debug_barrier()  # the next line reads what other threads stored
            fold_columns(column_ptr, column_sum_ptr, more, lo, hi, 1024)
            tl.debug_barrier()  # the next block of rows stores in the same place


def _by_tiles(operands: Similarity, of_rows: Results, of_columns: Results, precision: str) -> None:
    """Fills the results of the rows, with the rank if there is a threshold, and those of the columns."""
    x, y, scale, scale_factor, x_id, y_id, _, threshold = operands
    (n, d), m = x.shape, y.shape[0]
    counted = threshold is not None
    bounded = not counted and pays(n, m)
    config = tile_for("cross" + variant(bounded, m, y_id, None, threshold), x, precision)
    groups, group_len, splits, split_len = pick_groups(n, m, config, device_properties(x.device).num_sms)
    new: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    blocks = 1 if group_len == config.block_m else 2
    column_top, column_sum = torch.empty((2, blocks, groups, m), **new)
    (top, total), count = of_rows.state, of_rows.rank if counted else None
    if splits > 1:
        top, total = torch.empty((2, splits, n), **new)
        count = torch.empty((splits, n), dtype=torch.int32, device=x.device) if counted else None
    ranges, norm = row_bounds(y, y_id, config.block_n, True) if bounded else (None, None)
    launch(
        similarity_cross_fwd_kernel, (groups, splits),
        x, y, x_id, y_id, ranges, norm, threshold, scale_factor,
        top, total, *((of_rows.lse, of_rows.peak) if splits == 1 else (None, None)), count,
        column_top, column_sum, n, m, d, x.stride(0), *y.stride(), scale, group_len, split_len,
        EVEN_N=n % config.block_m == 0, EVEN_M=m % config.block_n == 0, **tile_options(d, config, precision),
    )  # fmt: skip
    if splits > 1:
        merge(Partials(top, total, counts=count), of_rows)
    merge(Partials(column_top[0], column_sum[0]), of_columns)


def similarity_cross_fwd(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
    keep_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """row (N,), column (M,), the rank, int32 (N,) or without a threshold (0,), the logits (keep_rows, M), state (2, N + M) and peak
    (N + M,). The backward here does not read these logits, so on a GPU ``keep_rows`` should be 0."""
    operands = laid_out(Similarity(x, y, scale, scale_factor, x_id, y_id, None, threshold), dense_either_way)
    n, m = len(x), len(y)
    new: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    row, column = (torch.empty(k, **new) for k in (n, m))
    state = torch.empty((2, n + m), **new)
    peak = torch.empty(n + m, dtype=torch.int32, device=x.device)
    rank = torch.empty(0 if threshold is None else n, dtype=torch.int32, device=x.device)
    of_rows, of_columns = Results(row, state[:, :n], peak[:n], rank=rank), Results(column, state[:, n:], peak[n:])
    precision = precision_of(x)
    with on_device(x):
        if tile_fits(n, m, x.shape[1], x.dtype, precision):
            _by_tiles(in_precision(operands, precision), of_rows, of_columns, precision)
        else:
            with torch.autocast(x.device.type, enabled=False):
                wide.cross_forward(operands, of_rows, of_columns)
        kept = _logits(operands, keep_rows) if keep_rows > 0 else torch.empty((0, m), **new)
    return row, column, rank, kept, state, peak


def _logits(operands: Similarity, keep_rows: int) -> Tensor:
    """The logits of the first rows (keep_rows, M), float32."""
    x, y, scale, scale_factor, x_id, y_id, *_ = operands
    with torch.autocast(x.device.type, enabled=False):
        s = factor_of(scale, scale_factor, torch.float32) * (x[:keep_rows].float() @ y.float().t())
    return s if x_id is None or y_id is None else s.masked_fill(x_id[:keep_rows, None] == y_id[None, :], float("-inf"))


def similarity_cross_bwd(
    drow: Tensor,  # (N,)
    dcolumn: Tensor,  # (M,)
    state: Tensor,  # (2, N + M)
    peak: Tensor,  # (N + M,)
    kept: Tensor,  # (R, M), not read
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dy and dscale; a gradient that ``need`` does not ask for is an empty tensor."""
    operands = laid_out(Similarity(x, y, scale, scale_factor, x_id, y_id))
    x, y = operands.x, operands.y
    need_x, need_y, need_scale = need
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_x else None
    dy = torch.empty(y.shape, dtype=x.dtype, device=x.device) if need_y else None
    sweep_x = need_x or (need_scale and not need_y)
    dots = torch.empty(len(x if sweep_x else y), dtype=torch.float32, device=x.device) if need_scale else None
    precision = precision_of(x)
    with on_device(x):
        terms = row_terms(state[:, : len(x)], drow, x.dtype, state[:, len(x) :], dcolumn)
        if not tile_fits(len(x), len(y), x.shape[1], x.dtype, precision):
            with torch.autocast(x.device.type, enabled=False):
                wide.cross_backward(terms, peak, operands, Gradients(dx, dy, None, dots))
        else:
            operands = in_precision(operands, precision)
            if sweep_x:
                row_owner(operands, terms, dx, None, dots)
            if need_y:
                row_owner(operands.swapped(), terms.swapped(), dy, None, None if sweep_x else dots)
    none = torch.empty(0, dtype=x.dtype, device=x.device)
    dscale = dots.sum() if dots is not None else torch.empty(0, dtype=torch.float32, device=x.device)
    return none if dx is None else dx, none if dy is None else dy, dscale
