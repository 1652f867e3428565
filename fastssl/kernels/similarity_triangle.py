"""Log-sum-exp of the rows of one symmetric similarity matrix in Triton: each pair of rows is multiplied once.

    s2_ij = s2_ji = log2(e) scale <x_i, x_j>,  -inf where id_i = id_j        x (N, D); base 2
    lse_i = ln(2) log2 sum_j 2^s2_ij

The rows are cut into K parts of L. A program takes two parts (I, J), or one part twice, and sweeps the square of L x L logits
between them. The row sums of the square belong to the rows I, its column sums to the rows J. A square on the diagonal holds each of
its logits twice, so its column sums are enough. Every row thus gets one partial (maximum, sum) for each part, (K, N) in all. There
are K (K + 1) / 2 programs with equal work, each partial is written by one of them, and the partials are merged in a fixed order
without atomics.

Column sums of a square are kept as in ``similarity_cross``: every block of rows after the first stores its own in memory behind
those of the first, and the program merges the two. Where ``tiles.row_bounds`` proves all logits small, no maxima are taken, and
rows and columns share one exponential. Otherwise a separate loop takes maxima, over fewer columns at a time, since two exponentials
need more registers.

U = 2 N^2 D FLOP: the sweep takes (1 + 1 / K) U / 2. A program reads L rows once, and the L other rows once for each block of rows,
out of L2. The partials are 8 K N bytes, written once and read once. For each column and each block of rows after the first, a
program writes and reads another 16 bytes without maxima, or 32 with them.
"""

import torch
import triton
import triton.language as tl

from fastssl.ops._operands import Similarity

from .host.device import device_properties
from .host.launch import launch
from .tiles.config import TileConfig, pick_parts
from .tiles.load import excluded, extent, fold_columns, load_ids, load_rows, may_hold, online_sums, plain_sums
from .tiles.merge import INF, LOG2E, Partials, Results, load_scale, merge
from .tiles.row_bounds import BOUND, greatest, row_bounds

#: Columns at a time where maxima are taken.
_NARROW = tl.constexpr(32)


@triton.jit
def _add_columns(sum_ptr, more, lo, hi, BLOCK: tl.constexpr):
    """Adds to the sums of the columns lo..hi those that lie ``more`` elements behind them; all are sums of 2^s, with no maximum
    subtracted."""
    for start in range(lo, hi, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        total = tl.load(sum_ptr + cols, mask=cols < hi) + tl.load(sum_ptr + more + cols, mask=cols < hi)
        tl.store(sum_ptr + cols, total, mask=cols < hi)


@triton.jit
def _logits(
    x, y, id_ptr, range_ptr, rows, lowest, highest, start, N, scale2,
    EVEN_N: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """As ``masked_logits``, but the rows' ids are loaded only in tiles that compare them, since otherwise they would occupy
    registers all the time."""
    cols = start + tl.arange(0, BN)
    s = tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale2
    if range_ptr is not None:
        if may_hold(range_ptr, start, lowest, highest, N, EVEN_N, BN):
            s = excluded(s, load_ids(id_ptr, rows, N), id_ptr, cols, N, EVEN_N)
    elif id_ptr is not None:
        s = excluded(s, load_ids(id_ptr, rows, N), id_ptr, cols, N, EVEN_N)
    elif not EVEN_N and start + BN > N:
        s = excluded(s, rows, id_ptr, cols, N, EVEN_N)
    return s


@triton.jit
def _store_column(ptr, cols, values, count, EVEN: tl.constexpr):
    if EVEN:
        tl.store(ptr + cols, values)
    else:
        tl.store(ptr + cols, values, mask=cols < count)


@triton.jit
def _zero(ptr, lo, hi, BLOCK: tl.constexpr):
    for start in range(lo, hi, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(ptr + at, tl.zeros((BLOCK,), tl.float32), mask=at < hi)


@triton.jit
def _square(
    x_ptr, id_ptr, range_ptr, row_top_ptr, row_sum_ptr, column_top_ptr, column_sum_ptr, more, begin, lo, N, D, s_x, part_len,
    scale2, PLAIN: tl.constexpr, EVEN_N: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Partial maximum and sum of the part of columns that begins at ``lo``, over the part of rows that begins at ``begin``, and
    those of the rows over the columns, unless both are the same part. PLAIN: the maximum is 0 everywhere and none is looked for."""
    end = tl.minimum(begin + part_len, N)
    hi = tl.minimum(lo + part_len, N)
    if PLAIN:
        _zero(row_top_ptr, begin, end, 1024)
        _zero(column_top_ptr, lo, hi, 1024)
    for first in range(begin, end, BM):
        rows = first + tl.arange(0, BM)
        x = load_rows(x_ptr, first, N, D, s_x, BM, BD, EVEN_N, EVEN_D)  # (BM, BD)
        lowest, highest = extent(load_ids(id_ptr, rows, N), range_ptr)
        top = tl.full((BM,), -INF, tl.float32)
        total = tl.zeros((BM,), tl.float32)
        behind = tl.where(first > begin, more, 0)
        for start in range(lo, hi, BN):
            cols = start + tl.arange(0, BN)
            y = load_rows(x_ptr, start, N, D, s_x, BN, BD, EVEN_N, EVEN_D)  # (BN, BD)
            s = _logits(x, y, id_ptr, range_ptr, rows, lowest, highest, start, N, scale2, EVEN_N, PRECISION, BN)
            if not EVEN_N:
                s = tl.where(rows[:, None] < N, s, -INF)
            if PLAIN:
                top, total, column, column_sum = plain_sums(s, total, BM, BN)
            else:
                top, total, column, column_sum = online_sums(s, top, total)
                _store_column(column_top_ptr + behind, cols, column, N, EVEN_N)
            _store_column(column_sum_ptr + behind, cols, column_sum, N, EVEN_N)
        inside = (rows < N) & (begin != lo)
        if not PLAIN:
            tl.store(row_top_ptr + rows, top, mask=inside)
        tl.store(row_sum_ptr + rows, total, mask=inside)
        if first > begin:
            tl.debug_barrier()  # the next lines read what other threads stored
            if PLAIN:
                _add_columns(column_sum_ptr, more, lo, hi, 1024)
            else:
                fold_columns(column_top_ptr, column_sum_ptr, more, lo, hi, 1024)
            tl.debug_barrier()  # the next block of rows stores in the same place


@triton.jit(do_not_specialize=["N"])
def similarity_triangle_kernel(
    x_ptr, id_ptr, range_ptr, norm_ptr, factor_ptr, top_ptr, sum_ptr, N, D, s_x, scale, part_len, EVEN_N: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """top and sum (K, N): the partial maximum and sum of every row over each part, with as much room again behind them where a part
    has several blocks of rows. grid (K (K + 1) / 2,): program p takes the parts p mod K and (p mod K + p // K) mod K."""
    parts = tl.cdiv(N, part_len)
    own = tl.program_id(0) % parts
    other = (own + tl.program_id(0) // parts) % parts
    begin = own * part_len
    lo = other * part_len
    of_rows = other.to(tl.int64) * N
    of_columns = own.to(tl.int64) * N
    more = parts.to(tl.int64) * N
    scale2 = load_scale(scale, factor_ptr) * LOG2E
    longest = greatest(norm_ptr, tl.cdiv(N, BN), 1024)
    if tl.abs(scale2) * longest * longest <= BOUND:
        _square(
            x_ptr, id_ptr, range_ptr, top_ptr + of_rows, sum_ptr + of_rows, top_ptr + of_columns, sum_ptr + of_columns, more,
            begin, lo, N, D, s_x, part_len, scale2, True, EVEN_N, EVEN_D, PRECISION, BM, BN, BD,
        )  # fmt: skip
    else:
        _square(
            x_ptr, id_ptr, None, top_ptr + of_rows, sum_ptr + of_rows, top_ptr + of_columns, sum_ptr + of_columns, more,
            begin, lo, N, D, s_x, part_len, scale2, False, EVEN_N, EVEN_D, PRECISION, BM, min(BN, _NARROW), BD,
        )  # fmt: skip


def forward(operands: Similarity, results: Results, config: TileConfig, options: dict) -> None:
    """Fills lse (N,), state (2, N) and, with -1, peak (N,). x and its ids are laid out for the tile kernels; y is x."""
    x, ids = operands.x, operands.x_id
    n, d = x.shape
    parts, length = pick_parts(n, config, device_properties(x.device).num_sms)
    blocks = 1 if length == config.block_m else 2
    top, total = torch.empty((2, blocks, parts, n), dtype=torch.float32, device=x.device).unbind()
    ranges, norm = row_bounds(x, ids, config.block_n, True)
    launch(
        similarity_triangle_kernel, (parts * (parts + 1) // 2,),
        x, ids, ranges, norm, operands.scale_factor, top, total, n, d, x.stride(0), operands.scale, length,
        EVEN_N=n % config.block_m == 0, **options,
    )  # fmt: skip
    merge(Partials(top[0], total[0]), results)
