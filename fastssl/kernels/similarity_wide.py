"""Similarities of rows wider than a tile. The logits are never stored: the matrix product goes through D in slices, and its
epilogue takes the exponentials.

    s2_ij = log2(e) scale <x_i, y_j>,  -inf where x_id_i = y_id_j        x (N, D), y (M, D), 16 bits; base 2
    forward     (t, S) of each row of a tile and, for cross, of each column: sum_j 2^s2_ij = S_i 2^t_i, merged in a fixed order
    backward    W_ij = g_i p_ij (symmetric + g_j p_ji, cross + h_j q_ij) in the dtype of the inputs; dx += W y, dy += W^T x

The forward goes through groups of rows, so that its partial results stay small. The backward goes through chunks of W (R, C): a
kernel here writes W, and two of the vendor's products read it. These chunks are large (``w_shape``), since each of them adds
(R + C) D float32 sums to those before.

U = 2 N M D FLOP: the forward takes U, the backward 3U, and 2U where it is symmetric or has one side. A tile reads (BM + BN) D
elements out of L2. Through HBM go the rows and columns of each wave of programs, 8 N M (1 / BN + 1 / BM) bytes of partials, written
once and read once, and the 2 N M bytes of W, written once and read twice. Thresholds, biases, the one-pass mean, float32, and a D
that is not a multiple of 64 go to ``similarity_chunked``.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import Similarity, cut

from . import similarity_chunked as chunked
from .similarity_chunked import pieces, products
from .tiles.config import TileConfig, w_shape
from .tiles.load import at_most_top, load_ids, may_hold
from .tiles.merge import INF, LOG2E, Gradients, Partials, Results, load_scale, merge
from .tiles.plan import tile_for
from .tiles.row_bounds import row_bounds
from .tiles.terms import Terms, row_terms

SLICE = 64  # elements of D: 128 bytes of a row, which is the widest swizzle of shared memory
#: Row blocks that run through the same columns before the next ones. On 132 multiprocessors a wave reads least when it is about
#: 16 blocks of 128 rows by 8 blocks of 256 columns.
RASTER = 16
#: Rows of one launch of the forward. They are 32 blocks of 128 rows, whose partials take 256 bytes for each column.
GROUP = 4096
#: With fewer logits the tiles would not fill one wave, and ``similarity_chunked`` needs only a chunk or two.
LEAST = 1 << 22
HALVES = (torch.bfloat16, torch.float16)
#: Where the logits of a tile lie within SPAN of each other, all its terms are taken under one base, which lies ROOM below the
#: largest logit, rounded down. Each term is then between 2^-120 and 2^61, so that the terms and their sums are normal numbers of
#: float32. Below WHOLE, float32 holds the base exactly.
SPAN, ROOM, WHOLE = tl.constexpr(180.0), tl.constexpr(60.0), tl.constexpr(4194304.0)


@triton.jit
def _place(N, M, BM: tl.constexpr, BN: tl.constexpr, RASTER: tl.constexpr):
    """(first row, first column) of this program's tile. Programs go down RASTER row blocks before they take the next column
    block."""
    high, across = tl.cdiv(N, BM), tl.cdiv(M, BN)
    band = tl.program_id(0) // (RASTER * across) * RASTER
    rows = tl.minimum(high - band, RASTER)
    within = tl.program_id(0) % (RASTER * across)
    return (band + within % rows) * BM, within // rows * BN


@triton.jit
def _slices(ptr, first, count, stride, ROWS: tl.constexpr, BK: tl.constexpr):
    """Pointers to the first slice (ROWS, BK) of the rows from ``first`` on; rows beyond ``count`` point to the last row. The offset
    of ``first`` is computed in 64 bits."""
    rows = tl.minimum(tl.arange(0, ROWS), count - 1 - first)
    return ptr + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + tl.arange(0, BK)[None, :])


@triton.jit
def _dots(
    x_ptr, y_ptr, row, col, N, M, D, s_x, s_y,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(BM, BN) <x_i, y_j> in float32, of the rows from ``row`` and the columns from ``col`` on."""
    x_ptrs = _slices(x_ptr, row, N, s_x, BM, BK)
    y_ptrs = _slices(y_ptr, col, M, s_y, BN, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, D, BK):
        acc = tl.dot(tl.load(x_ptrs), tl.trans(tl.load(y_ptrs)), acc)
        x_ptrs += BK
        y_ptrs += BK
    return acc


@triton.jit
def _exclude(s, x_id_ptr, y_id_ptr, range_ptr, rows, cols, col, N, M, RANGE: tl.constexpr):
    """s (BM, BN) with -inf where ids are equal. The columns' ids are read only if the RANGE columns around ``col`` may hold an id
    of these rows."""
    if y_id_ptr is not None:
        x_id = load_ids(x_id_ptr, rows, N)  # (BM,)
        if may_hold(range_ptr, col, tl.min(x_id, 0).to(tl.int64), tl.max(x_id, 0).to(tl.int64), 0, True, RANGE):
            s = tl.where(x_id[:, None] == load_ids(y_id_ptr, cols, M)[None, :], -INF, s)
    return s


@triton.jit
def _of_rows(s):
    """(maximum, sum of 2^(s - maximum)) of each row of s (BM, BN)."""
    top = tl.max(s, 1)
    return top, tl.sum(tl.exp2(s - tl.where(top == -INF, 0.0, top)[:, None]), 1)


@triton.jit
def _of_columns(s):
    top = tl.max(s, 0)
    return top, tl.sum(tl.exp2(s - tl.where(top == -INF, 0.0, top)[None, :]), 0)


@triton.jit(do_not_specialize=["N"])
def wide_fwd_kernel(
    x_ptr, y_ptr, x_id_ptr, y_id_ptr, range_ptr, factor_ptr, row_top_ptr, row_sum_ptr, col_top_ptr, col_sum_ptr,
    N, M, D, s_x, s_y, scale,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RASTER: tl.constexpr, RANGE: tl.constexpr,
):  # fmt: skip
    """Partial (maximum, sum) of the rows of a tile (M / BN, N) and, where col_top_ptr is given, (N / BM, M) of its columns. With
    columns, rows and columns share one exponential if all logits of the tile, the excluded ones too, lie within SPAN of each other.
    Then a whole number stands in place of the maximum, and minus the sum in place of the sum. grid (tiles,)"""
    row, col = _place(N, M, BM, BN, RASTER)
    scale2 = load_scale(scale, factor_ptr) * LOG2E
    s = _dots(x_ptr, y_ptr, row, col, N, M, D, s_x, s_y, BM, BN, BK)
    COLUMNS: tl.constexpr = col_top_ptr is not None
    rows, cols = row + tl.arange(0, BM), col + tl.arange(0, BN)
    high = 0.0
    low = 0.0
    if COLUMNS:
        most, least = tl.max(s) * scale2, tl.min(s) * scale2
        high, low = tl.maximum(most, least), tl.minimum(most, least)
    s = _exclude(s * scale2, x_id_ptr, y_id_ptr, range_ptr, rows, cols, col, N, M, RANGE)
    if (row + BM > N) | (col + BN > M):
        s = tl.where((rows[:, None] < N) & (cols[None, :] < M), s, -INF)
    if COLUMNS:
        if (high - low <= SPAN) & (high < WHOLE) & (low > -WHOLE):
            base = tl.floor(high) - ROOM
            p = tl.exp2(s - base)
            row_top, row_sum = tl.full((BM,), base, tl.float32), -tl.sum(p, 1)
            col_top, col_sum = tl.full((BN,), base, tl.float32), -tl.sum(p, 0)
        else:
            row_top, row_sum = _of_rows(s)
            col_top, col_sum = _of_columns(s)
        at = tl.cast(row // BM, tl.int64) * M + cols
        tl.store(col_top_ptr + at, col_top, mask=cols < M)
        tl.store(col_sum_ptr + at, col_sum, mask=cols < M)
    else:
        row_top, row_sum = _of_rows(s)
    at = tl.cast(col // BN, tl.int64) * N + rows
    tl.store(row_top_ptr + at, row_top, mask=rows < N)
    tl.store(row_sum_ptr + at, row_sum, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def wide_weights_kernel(
    x_ptr, y_ptr, x_id_ptr, y_id_ptr, range_ptr, factor_ptr, row_l_ptr, row_w_ptr, row_v_ptr, col_l_ptr, col_w_ptr, col_v_ptr,
    stats_ptr, w_ptr, N, M, D, s_x, s_y, scale,
    NARROW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RASTER: tl.constexpr, RANGE: tl.constexpr,
):  # fmt: skip
    """gain W (N, M); without col_l_ptr W holds the terms of the rows only. With col_l_ptr the launches come in pairs, and stats
    (3,) decide which of the two does the work: the NARROW one takes one exponential, as in ``similarity_bwd_kernel``, the other
    takes two. The one that is not chosen ends at once. grid (tiles,)"""
    row, col = _place(N, M, BM, BN, RASTER)
    scale2 = load_scale(scale, factor_ptr) * LOG2E
    BOTH: tl.constexpr = col_l_ptr is not None
    if BOTH:
        narrow = tl.load(stats_ptr + 1) > 0.0
        if narrow != NARROW:
            return
    s = _dots(x_ptr, y_ptr, row, col, N, M, D, s_x, s_y, BM, BN, BK)
    rows, cols = row + tl.arange(0, BM), col + tl.arange(0, BN)
    s = _exclude(s * scale2, x_id_ptr, y_id_ptr, range_ptr, rows, cols, col, N, M, RANGE)
    if NARROW:
        v_i = tl.load(row_v_ptr + rows, mask=rows < N, other=0.0)  # (BM,)
        v_j = tl.load(col_v_ptr + cols, mask=cols < M, other=0.0)  # (BN,)
        w = tl.exp2(s - tl.load(stats_ptr)) * (v_i[:, None] + v_j[None, :])
    else:
        l_i = tl.load(row_l_ptr + rows, mask=rows < N, other=INF)[:, None]  # (BM, 1)
        w_i = tl.load(row_w_ptr + rows, mask=rows < N, other=0.0)[:, None]
        w = w_i * tl.exp2(at_most_top(s - l_i, l_i, False))
        if BOTH:
            l_j = tl.load(col_l_ptr + cols, mask=cols < M, other=INF)[None, :]  # (1, BN)
            w_j = tl.load(col_w_ptr + cols, mask=cols < M, other=0.0)[None, :]
            w += w_j * tl.exp2(at_most_top(s - l_j, l_j, False))
    at = w_ptr + tl.cast(row, tl.int64) * M + col + (tl.arange(0, BM)[:, None] * M + tl.arange(0, BN)[None, :])
    tl.store(at, w.to(w_ptr.dtype.element_ty), mask=(rows[:, None] < N) & (cols[None, :] < M))


def takes(x: Tensor, y: Tensor) -> bool:
    """Whether the kernels here serve x (N, D) and y (M, D), where neither bias nor threshold nor mean is asked for."""
    large = x.shape[1] % SLICE == 0 and len(x) * len(y) >= LEAST
    return x.dtype in HALVES and large and tile_for("wide", x).block_m > 0  # 0 where chunks were measured to be faster


def _options(config: TileConfig, length: int) -> dict:
    """The constants of a launch. ``length`` columns share a range of ids; they are whole tiles."""
    assert length % config.block_n == 0, (length, config)
    return {
        "BM": config.block_m, "BN": config.block_n, "BK": SLICE, "RASTER": RASTER, "RANGE": length,
        "num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": config.max_registers,
    }  # fmt: skip


def _grid(config: TileConfig, rows: int, columns: int) -> tuple[int]:
    return (triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n),)


def _apart(t: Tensor) -> Tensor:
    """t (R, D) with dense rows whose stride is a multiple of 32 bytes, since Triton loads 16 bytes at a time only where it knows of
    such a stride, and small enough that 32-bit offsets reach every element of a tile."""
    return t if t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.stride(0) < 1 << 22 else t.contiguous()


def _with_rows_apart(operands: Similarity) -> Similarity:
    return operands._replace(x=_apart(operands.x), y=_apart(operands.y))


def _partials(operands: Similarity, of_rows: Results, of_columns: Results | None = None) -> None:
    """Fills the results of the N rows and, if ``of_columns`` is given, those of the M columns."""
    operands = _with_rows_apart(operands)
    x, y, scale, scale_factor, x_id, y_id, *_ = operands
    config, m = tile_for("wide", x), len(y)
    ranges = None if y_id is None else row_bounds(y, y_id, config.block_n, False)[0]
    options = _options(config, config.block_n)
    new: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    groups = pieces(len(x), GROUP)
    several = len(groups) > 1 and of_columns is not None
    held = torch.empty((2, len(groups), m) if several else (2, 0, m), **new)  # the columns of each group
    unread = torch.empty(m, **new), torch.empty(m, dtype=torch.int32, device=x.device)
    for k, rows in enumerate(groups):
        n = rows.stop - rows.start
        row_top, row_sum = torch.empty((2, triton.cdiv(m, config.block_n), n), **new)
        columns = (None, None) if of_columns is None else torch.empty((2, triton.cdiv(n, config.block_m), m), **new).unbind()
        wide_fwd_kernel[_grid(config, n, m)](
            x[rows], y, cut(x_id, rows), y_id, ranges, scale_factor, row_top, row_sum, *columns,
            n, m, x.shape[1], x.stride(0), y.stride(0), scale, **options,
        )  # fmt: skip
        merge(Partials(row_top, row_sum), of_rows.of(rows))
        if of_columns is not None:
            merge(Partials(*columns), Results(unread[0], held[:, k], unread[1]) if several else of_columns)
    if several and of_columns is not None:
        merge(Partials(*held.unbind()), of_columns)


class Weights(NamedTuple):
    """What every chunk of W needs; ``terms.of_y`` is None where only the rows have gradients."""

    operands: Similarity
    terms: Terms
    ranges: Tensor | None  # (M / length, 2)
    length: int  # columns that share a range of ids

    def chunk(self, rows: slice, cols: slice) -> Tensor:
        """gain W (R, C)."""
        x, y, scale, scale_factor, x_id, y_id, *_ = self.operands.part(rows, cols)
        of_x, of_y, stats = self.terms
        assert of_x is not None
        w = torch.empty((len(x), len(y)), dtype=x.dtype, device=x.device)
        near = None if self.ranges is None else self.ranges[cols.start // self.length :]
        columns = (None,) * 3 if of_y is None else of_y[:, cols]
        for narrow in (False,) if of_y is None else (True, False):
            config = tile_for("wide" if narrow or of_y is None else "wide two", x)
            wide_weights_kernel[_grid(config, *w.shape)](
                x, y, x_id, y_id, near, scale_factor, *of_x[:, rows], *columns, stats, w,
                *w.shape, x.shape[1], x.stride(0), y.stride(0), scale, narrow, **_options(config, self.length),
            )  # fmt: skip
        return w


def _sweep(operands: Similarity, terms: Terms, gradients: Gradients, dot_scale: float = 1.0) -> None:
    """Fills those of dx, dy and dots that are given."""
    operands = _with_rows_apart(operands)
    x, y, y_id = operands.x, operands.y, operands.y_id
    length = tile_for("wide", x).block_n
    ranges = None if y_id is None else row_bounds(y, y_id, length, False)[0]
    products(operands, w_shape(len(x), len(y)), Weights(operands, terms, ranges, length).chunk, terms.stats, gradients, dot_scale)


# The following functions take the same arguments as those of ``similarity_chunked`` and pass on what the kernels here do not serve.


def forward(operands: Similarity, results: Results) -> None:
    """As ``similarity_chunked.forward``."""
    if operands.y_bias is None and operands.threshold is None and results.mean is None and takes(operands.x, operands.y):
        _partials(operands, results)
    else:
        chunked.forward(operands, results)


def cross_forward(operands: Similarity, of_rows: Results, of_columns: Results) -> None:
    """As ``similarity_chunked.cross_forward``."""
    if operands.threshold is None and takes(operands.x, operands.y):
        _partials(operands, of_rows, of_columns)
    else:
        chunked.cross_forward(operands, of_rows, of_columns)


def backward(dlse: Tensor, state: Tensor, peak: Tensor, operands: Similarity, symmetric: bool, gradients: Gradients) -> None:
    """As ``similarity_chunked.backward``."""
    if operands.y_bias is None and takes(operands.x, operands.y):
        terms = row_terms(state, dlse, operands.x.dtype)
        if symmetric:
            terms = Terms(terms.of_x, terms.of_x, terms.stats)
        _sweep(operands, terms, gradients, 0.5 if symmetric else 1.0)
    else:
        chunked.backward(dlse, state, peak, operands, symmetric, gradients)


def cross_backward(terms: Terms, peak: Tensor, operands: Similarity, gradients: Gradients) -> None:
    """As ``similarity_chunked.cross_backward``."""
    if takes(operands.x, operands.y):
        _sweep(operands, terms, gradients)
    else:
        chunked.cross_backward(terms, peak, operands, gradients)
