"""Similarities that neither tiles nor ``similarity_wide`` serve: the vendor's matrix products on chunks that stay in L2, with one
fused kernel between the products.

    S = x_chunk y_chunk^T            (R, C) float32, 4 R C <= 32 MB: written by the product, read once or twice, out of L2
    forward     (maximum, sum) of each row of a chunk; one-pass also P = 2^(s2 - maximum) and P y_chunk; merged over the chunks
    cross       the same of each column of a chunk, running over the chunks of rows
    backward    W_ij = g_i p_ij (symmetric + g_j p_ji, cross + h_j q_ij) in the dtype of the inputs; dx += W y, dy += W^T x

The vendor may choose another algorithm for another shape, so S in the backward can differ from S in the forward in its last bits.
Therefore a weight 2^(s2 - t) is cut off at 1, and the largest logit of a row, whose column the forward keeps, counts as t itself.

FLOP as in ``similarity_forward`` and ``similarity_backward``, except that a two-sided backward takes 3U, since both sides use the
same S. HBM: x is read once for each chunk of columns and y once for each chunk of rows; the same holds for the float32 sums of dx
and dy. The size of the chunks depends on the shape alone, and they are visited in a fixed order.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import Similarity, cut

from .tiles.config import chunk_shape
from .tiles.load import may_hold
from .tiles.merge import INF, LOG2E, Gradients, Partials, Results, finish, load_scale, merge
from .tiles.row_bounds import row_bounds
from .tiles.terms import Terms, row_terms

BLOCK = 1024  # columns that a row's program reads at a time


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32; the result is not rounded to 16 bits even if the operands have 16 bits."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def pieces(count: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


@triton.jit
def _row_logits(s_row_ptr, cols, C, row_id, y_id_ptr, near, bias_ptr, scale, UNIT: tl.constexpr):
    """scale s + UNIT bias at some columns of one row, and -inf outside the row and at excluded columns, which are looked for only
    if ``near``."""
    s = tl.load(s_row_ptr + cols, mask=cols < C, other=0.0) * scale
    if bias_ptr is not None:
        s += tl.load(bias_ptr + cols, mask=cols < C, other=0.0).to(tl.float32) * UNIT
    if y_id_ptr is not None and near:
        s = tl.where(tl.load(y_id_ptr + cols, mask=cols < C, other=0) == row_id, -INF, s)
    return tl.where(cols < C, s, -INF)


@triton.jit
def _near(range_ptr, start, row_id, BLOCK: tl.constexpr):
    """Whether the columns from ``start`` on may hold the row's id."""
    near = True
    if range_ptr is not None:
        near = may_hold(range_ptr, start, row_id, row_id, 0, True, BLOCK)
    return near


@triton.jit
def chunk_rows_kernel(
    s_ptr, x_id_ptr, y_id_ptr, range_ptr, bias_ptr, threshold_ptr, limit_ptr, factor_ptr, top_ptr, sum_ptr, peak_ptr, p_ptr,
    count_ptr, C, first, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of row program_id(0) of S (R, C), whose columns begin at ``first``: the maximum, the sum of 2^(s2 - maximum), and the column
    of the maximum, or -1 where all columns are excluded; with p_ptr also P (R, C), and with threshold_ptr also the count of logits
    above the threshold. With limit_ptr (then without p_ptr) logits above the limit are excluded too. The loop has no barrier, since
    each lane keeps a maximum, a sum and a count of its own."""
    row = tl.program_id(0).to(tl.int64)
    scale = load_scale(scale, factor_ptr)
    row_id = tl.load(x_id_ptr + row) if x_id_ptr is not None else 0
    threshold = tl.load(threshold_ptr + row).to(tl.float32) if threshold_ptr is not None else 0.0
    top = tl.full((BLOCK,), -INF, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    peak = tl.full((BLOCK,), -1, tl.int32)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        near = _near(range_ptr, start, row_id, BLOCK)
        s = _row_logits(s_ptr + row * C, cols, C, row_id, y_id_ptr, near, bias_ptr, scale * LOG2E, LOG2E)  # (BLOCK,)
        if limit_ptr is not None:
            s = tl.where(s > tl.load(limit_ptr + row).to(tl.float32) * LOG2E, -INF, s)
        peak = tl.where(s > top, first + cols, peak)
        new = tl.maximum(top, s)
        safe = tl.where(new == -INF, 0.0, new)
        total = total * tl.exp2(top - safe) + tl.exp2(s - safe)
        top = new
        if threshold_ptr is not None:
            natural = _row_logits(s_ptr + row * C, cols, C, row_id, y_id_ptr, near, bias_ptr, scale, 1.0)
            count += ((natural > threshold) & (s != -INF)).to(tl.int32)
    best = tl.max(top, 0)
    safe_best = tl.where(best == -INF, 0.0, best)
    tl.store(top_ptr + row, best)
    tl.store(sum_ptr + row, tl.sum(total * tl.exp2(top - safe_best), 0))
    tl.store(peak_ptr + row, tl.max(tl.where(top == best, peak, -1), 0))
    if threshold_ptr is not None:
        tl.store(count_ptr + row, tl.sum(count, 0))
    if p_ptr is not None:
        for start in range(0, C, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            near = _near(range_ptr, start, row_id, BLOCK)
            s = _row_logits(s_ptr + row * C, cols, C, row_id, y_id_ptr, near, bias_ptr, scale * LOG2E, LOG2E)
            tl.store(p_ptr + row * C + cols, tl.exp2(s - safe_best).to(p_ptr.dtype.element_ty), mask=cols < C)


@triton.jit
def chunk_columns_kernel(
    s_ptr, x_id_ptr, y_id_ptr, factor_ptr, top_ptr, sum_ptr, peak_ptr, R, C, state, seen, scale,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Updates the running maximum, sum and row of the maximum of each column, (pieces, state) each, with the rows of S (R, C). Of
    every pieces * BM rows, piece program_id(1) takes BM. The rows of S begin at ``seen``; earlier results are read only if ``seen``
    is not 0. grid (C / BN, pieces)."""
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = cols < C
    at = tl.program_id(1).to(tl.int64) * state + cols
    scale2 = load_scale(scale, factor_ptr) * LOG2E
    y_id = tl.load(y_id_ptr + cols, mask=inside, other=0) if y_id_ptr is not None else cols
    top = tl.full((BM, BN), -INF, tl.float32)
    total = tl.zeros((BM, BN), tl.float32)
    peak = tl.full((BM, BN), -1, tl.int32)
    for start in range(tl.program_id(1) * BM, R, tl.num_programs(1) * BM):
        rows = start + tl.arange(0, BM)
        tile = (rows[:, None] < R) & inside[None, :]
        s = tl.load(s_ptr + rows[:, None].to(tl.int64) * C + cols[None, :], mask=tile, other=0.0)  # (BM, BN)
        s = tl.where(tile, s * scale2, -INF)
        if x_id_ptr is not None:
            x_id = tl.load(x_id_ptr + rows, mask=rows < R, other=0)  # (BM,)
            s = tl.where(x_id[:, None] == y_id[None, :], -INF, s)
        peak = tl.where(s > top, (seen + rows)[:, None], peak)
        new = tl.maximum(top, s)
        safe = tl.where(new == -INF, 0.0, new)
        total = total * tl.exp2(top - safe) + tl.exp2(s - safe)
        top = new
    before = tl.load(top_ptr + at, mask=inside & (seen > 0), other=-INF)  # (BN,)
    before_sum = tl.load(sum_ptr + at, mask=inside & (seen > 0), other=0.0)
    before_peak = tl.load(peak_ptr + at, mask=inside & (seen > 0), other=-1)
    here = tl.max(top, 0)
    best = tl.maximum(before, here)
    safe_best = tl.where(best == -INF, 0.0, best)
    after = before_sum * tl.exp2(before - safe_best) + tl.sum(total * tl.exp2(top - safe_best[None, :]), 0)
    tl.store(top_ptr + at, best, mask=inside)
    tl.store(sum_ptr + at, after, mask=inside)
    peak_here = tl.max(tl.where(top == here[None, :], peak, -1), 0)
    tl.store(peak_ptr + at, tl.where(here > before, peak_here, before_peak), mask=inside)


@triton.jit
def chunk_weights_kernel(
    s_ptr, w_ptr, x_id_ptr, y_id_ptr, bias_ptr, row_bias_ptr, limit_ptr, factor_ptr, row_l_ptr, row_w_ptr, row_peak_ptr,
    col_l_ptr, col_w_ptr, col_peak_ptr, dbias_ptr, R, C, first_row, first_col, scale,
    SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Turns S (R, C), which begins at (first_row, first_col), into gain W (R, C). dbias (R / BM, C) are the sums of gain g_i p_ij
    over the rows of each tile. With limit_ptr (then not SYMMETRIC) logits above a row's limit have no weight, but for that at its
    peak. grid (C / BN, R / BM)."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    l_i = tl.load(row_l_ptr + rows, mask=rows < R, other=INF)  # (BM,)
    w_i = tl.load(row_w_ptr + rows, mask=rows < R, other=0.0)
    at = rows[:, None].to(tl.int64) * C + cols[None, :]
    tile = (rows[:, None] < R) & (cols[None, :] < C)
    s = tl.load(s_ptr + at, mask=tile, other=-INF)  # (BM, BN)
    s = tl.where(tile, s * (load_scale(scale, factor_ptr) * LOG2E), -INF)
    if x_id_ptr is not None:
        x_id = tl.load(x_id_ptr + rows, mask=rows < R, other=0)
        y_id = tl.load(y_id_ptr + cols, mask=cols < C, other=0)
        s = tl.where(x_id[:, None] == y_id[None, :], -INF, s)
    own = s
    if bias_ptr is not None:
        own += tl.load(bias_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :] * LOG2E
    if limit_ptr is not None:
        limit = tl.load(limit_ptr + rows, mask=rows < R, other=INF).to(tl.float32) * LOG2E  # (BM,)
        own = tl.where(own > limit[:, None], -INF, own)
    peak_i = tl.load(row_peak_ptr + rows, mask=rows < R, other=-1)  # (BM,)
    from_top = tl.where((first_col + cols)[None, :] == peak_i[:, None], 0.0, own - l_i[:, None])
    w = w_i[:, None] * tl.exp2(tl.where(from_top > 0.0, 0.0, from_top))
    if dbias_ptr is not None:
        tl.store(dbias_ptr + tl.program_id(1).to(tl.int64) * C + cols, tl.sum(w, 0), mask=cols < C)
    if SYMMETRIC:
        l_j = tl.load(col_l_ptr + cols, mask=cols < C, other=INF)  # (BN,)
        w_j = tl.load(col_w_ptr + cols, mask=cols < C, other=0.0)
        if row_bias_ptr is not None:
            s += tl.load(row_bias_ptr + rows, mask=rows < R, other=0.0).to(tl.float32)[:, None] * LOG2E
        peak_j = tl.load(col_peak_ptr + cols, mask=cols < C, other=-1)  # (BN,)
        from_top = tl.where((first_row + rows)[:, None] == peak_j[None, :], 0.0, s - l_j[None, :])
        w += w_j[None, :] * tl.exp2(tl.where(from_top > 0.0, 0.0, from_top))
    if w_ptr is not None:
        tl.store(w_ptr + at, w.to(w_ptr.dtype.element_ty), mask=tile)


def _walk(x: Tensor, y: Tensor, shape: tuple[int, int] | None = None) -> Iterator[tuple[slice, list[slice]]]:
    """(rows, columns of all chunks) for each chunk of rows, in order."""
    chunk_r, chunk_c = shape or chunk_shape(x.shape[0], y.shape[0])
    columns = pieces(y.shape[0], chunk_c)
    return ((rows, columns) for rows in pieces(x.shape[0], chunk_r))


def _ranges(y: Tensor, y_id: Tensor | None) -> Tensor | None:
    """(M / BLOCK, 2): the lowest and the highest id of each block of columns that ``chunk_rows_kernel`` reads at a time."""
    return None if y_id is None else row_bounds(y, y_id, BLOCK, False)[0]


def _rows_of_chunk(
    s: Tensor,  # (R, C)
    part: Similarity,  # the operands of this chunk
    ranges: Tensor | None,
    first: int,  # the chunk's first column
    partials: Partials,
    k: int,
    p: Tensor | None = None,  # (R, C)
    limit: Tensor | None = None,  # (R,)
) -> None:
    """Fills entry k of each tensor (chunks, R) of ``partials`` from one chunk and, if p is given, p."""
    top, total, peak, _, counts = partials
    assert peak is not None
    near = None if ranges is None or first % BLOCK else ranges[first // BLOCK :]
    chunk_rows_kernel[(s.shape[0],)](
        s, part.x_id, part.y_id, near, part.y_bias, part.threshold, limit, part.scale_factor,
        top[k], total[k], peak[k], p, cut(counts, k), s.shape[1], first, part.scale, BLOCK,
    )  # fmt: skip


def _new_partials(chunks: int, rows: int, threshold: Tensor | None, device: torch.device, acc: Tensor | None = None) -> Partials:
    top, total = torch.empty((2, chunks, rows), dtype=torch.float32, device=device)
    peak, count = torch.empty((2, chunks, rows), dtype=torch.int32, device=device)
    return Partials(top, total, peak, acc, None if threshold is None else count)


def forward(operands: Similarity, results: Results, limit: Tensor | None = None) -> None:
    """Fills the results of the rows, with the mean if ``results`` has one and the rank if there is a threshold. Logits above a
    limit (N,) are left out; there is no mean then."""
    x, y, threshold, mean = operands.x, operands.y, operands.threshold, results.mean
    ranges = _ranges(y, operands.y_id)
    for rows, columns in _walk(x, y):
        count = rows.stop - rows.start
        acc = None if mean is None else torch.empty((len(columns), count, x.shape[1]), dtype=torch.float32, device=x.device)
        partials = _new_partials(len(columns), count, threshold, x.device, acc)
        for k, cols in enumerate(columns):
            part = operands.part(rows, cols)
            s = mm(part.x, part.y.t())  # (R, C)
            if acc is None:
                _rows_of_chunk(s, part, ranges, cols.start, partials, k, limit=cut(limit, rows))
            else:
                p = torch.empty(s.shape, dtype=x.dtype, device=x.device)
                _rows_of_chunk(s, part, ranges, cols.start, partials, k, p)
                acc[k] = mm(p, part.y)
        merge(partials, results.of(rows))


PIECES = 4  # parts of a chunk's rows, so that 4 x 64 programs sweep the columns of a chunk of 2,048 x 4,096


def cross_forward(operands: Similarity, of_rows: Results, of_columns: Results) -> None:
    """Fills the results of the N rows, with the rank if there is a threshold, and those of the M columns. Each chunk is read twice
    out of L2."""
    x, y, threshold = operands.x, operands.y, operands.threshold
    m, ranges = y.shape[0], _ranges(y, operands.y_id)
    column = _new_partials(PIECES, m, None, x.device)
    assert column.peak is not None
    for rows, columns in _walk(x, y):
        partials = _new_partials(len(columns), rows.stop - rows.start, threshold, x.device)
        for k, cols in enumerate(columns):
            part = operands.part(rows, cols)
            s = mm(part.x, part.y.t())  # (R, C)
            _rows_of_chunk(s, part, ranges, cols.start, partials, k)
            chunk_columns_kernel[(triton.cdiv(s.shape[1], 64), PIECES)](
                s, part.x_id, part.y_id, part.scale_factor, column.top[:, cols], column.total[:, cols],
                column.peak[:, cols], *s.shape, m,
                rows.start, part.scale, 16, 64,
            )  # fmt: skip
        merge(partials, of_rows.of(rows))
    merge(column, of_columns)


class _Side(NamedTuple):
    """What the weights need to know of each row, or of each column."""

    terms: Tensor  # (3, N), of ``row_terms``
    peak: Tensor  # (N,) int32

    def of(self, some: slice) -> tuple[Tensor, Tensor, Tensor]:
        return (*self.terms[:2, some], self.peak[some])


class _Weights(NamedTuple):
    """What every chunk of W needs."""

    operands: Similarity
    own: _Side  # of the N rows
    other: _Side | None  # of the M columns, or None where only rows have gradients
    row_bias: Tensor | None  # (N,), the bias of the rows in the columns' softmax, where columns have gradients
    want_w: bool
    sum_bias: Tensor | None  # (M,), to which the sums of the columns are added
    limit: Tensor | None = None  # (N,), above which logits have no weight

    def chunk(self, rows: slice, cols: slice) -> Tensor:
        """gain W (R, C), or (0,) where only sums are wanted."""
        part = self.operands.part(rows, cols)
        s = mm(part.x, part.y.t())  # (R, C)
        w = torch.empty(s.shape if self.want_w else (0,), dtype=part.x.dtype, device=s.device)
        bm, bn = 32, 128  # 4,096 elements, 16 for each thread of 8 warps; with 4 warps the kernel would spill 24 bytes
        grid = (triton.cdiv(s.shape[1], bn), triton.cdiv(s.shape[0], bm))
        sum_bias = cut(self.sum_bias, cols)
        sums = None if sum_bias is None else torch.empty((grid[1], s.shape[1]), dtype=torch.float32, device=s.device)
        columns = (None,) * 3 if self.other is None else self.other.of(cols)
        chunk_weights_kernel[grid](
            s, w if self.want_w else None, part.x_id, part.y_id, part.y_bias, cut(self.row_bias, rows), cut(self.limit, rows),
            part.scale_factor, *self.own.of(rows), *columns, sums,
            *s.shape, rows.start, cols.start, part.scale, self.other is not None, bm, bn, num_warps=8,
        )  # fmt: skip
        if sum_bias is not None and sums is not None:
            sum_bias += sums.sum(0)
        return w


def products(
    operands: Similarity,
    shape: tuple[int, int] | None,
    weights: Callable[[slice, slice], Tensor],
    stats: Tensor,
    gradients: Gradients,
    dot_scale: float = 1.0,
) -> None:
    """Fills those of dx, dy and dots that are given, from chunks of at most ``shape``. ``weights(rows, cols)`` returns the W (R, C)
    of a chunk, which is not read where only the sums that ``weights`` adds up are wanted. dots are (N,), or (M,) where dy is wanted
    but dx is not."""
    x, y, scale, scale_factor, *_ = operands
    dx, dy, _, dots = gradients
    want_x = dx is not None or (dots is not None and dy is None)
    sum_y = torch.zeros(y.shape, dtype=torch.float32, device=x.device) if dy is not None else None
    for rows, columns in _walk(x, y, shape):
        sum_x = None
        for cols in columns:
            w = weights(rows, cols)
            if want_x:
                part = mm(w, y[cols])
                sum_x = part if sum_x is None else sum_x.add_(part)
            if sum_y is not None:
                sum_y[cols] += mm(w.t(), x[rows])
            del w  # before the next one is made
        if sum_x is not None:
            finish(sum_x[None], stats, scale, scale_factor, cut(dx, rows), x[rows], cut(dots, rows), dot_scale)
    if sum_y is not None:
        finish(sum_y[None], stats, scale, scale_factor, dy, y, None if want_x else dots)


def _sweep(weights: _Weights, stats: Tensor, gradients: Gradients, dot_scale: float = 1.0) -> None:
    """Fills those of the gradients that are given."""
    products(weights.operands, None, weights.chunk, stats, gradients, dot_scale)
    if weights.sum_bias is not None:
        finish(weights.sum_bias[None, :, None], stats, 1.0, None, gradients.dbias)


def backward(
    dlse: Tensor,  # (N,)
    state: Tensor,  # (2, N)
    peak: Tensor,  # (N,)
    operands: Similarity,
    symmetric: bool,
    gradients: Gradients,
    limit: Tensor | None = None,  # (N,), not where symmetric
) -> None:
    """Fills those of the gradients that are given; dscale is the sum of the dots."""
    dx, dy, dbias, dots = gradients
    of_x, _, stats = row_terms(state, dlse, operands.x.dtype)
    assert of_x is not None
    own = _Side(of_x, peak)
    other, row_bias, dot_scale = (own, operands.y_bias, 0.5) if symmetric else (None, None, 1.0)
    want_w = not (dx is None and dy is None and dots is None)
    sum_bias = None if dbias is None else torch.zeros(dbias.shape, dtype=torch.float32, device=dbias.device)
    _sweep(_Weights(operands, own, other, row_bias, want_w, sum_bias, limit), stats, gradients, dot_scale)


def cross_backward(terms: Terms, peak: Tensor, operands: Similarity, gradients: Gradients) -> None:
    """Fills those of dx, dy and dots that are given, with 3U; peak (N + M,)."""
    n = len(operands.x)
    assert terms.of_x is not None and terms.of_y is not None
    own, other = _Side(terms.of_x, peak[:n]), _Side(terms.of_y, peak[n:])
    want_w = any(gradient is not None for gradient in gradients)
    _sweep(_Weights(operands, own, other, None, want_w, None), terms.stats, gradients)
