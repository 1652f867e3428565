"""similarity_lse above the width of a tile: the vendor's matrix product on chunks that stay in L2, one fused kernel between.

    S = x_chunk y_chunk^T            (R, C) float32, 4 R C <= 32 MB: written by the product, read once or twice, out of L2
    forward     (maximum, sum) of each row of a chunk; one-pass also P = 2^(s2 - maximum) and P y_chunk; merged over the chunks
    backward    W_ij = g_i p_ij, symmetric g_i p_ij + g_j p_ji, in the dtype of the inputs; dx_chunk += W y, dy_chunk += W^T x

FLOP as in ``similarity``, but two-sided 3U: one S serves both sides. HBM: x once for each chunk of columns, y once for each
chunk of rows, and so for the float32 sums of dx and dy. Chunks are a function of the shape alone, visited in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .similarity_config import chunk_shape
from .similarity_merge import INF, LOG2E, finish, load_scale, merge, row_terms


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32: no product of 16-bit operands is rounded to 16 bits."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def _pieces(count: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


def _cut(t: Tensor | None, piece: slice) -> Tensor | None:
    return None if t is None else t[piece]


@triton.jit
def _row_logits(s_row_ptr, cols, C, row_id, y_id_ptr, bias_ptr, scale2):
    """Base-2 logits of some columns of one row; -inf where excluded or outside."""
    s = tl.load(s_row_ptr + cols, mask=cols < C, other=0.0) * scale2
    if bias_ptr is not None:
        s += tl.load(bias_ptr + cols, mask=cols < C, other=0.0).to(tl.float32) * LOG2E
    if y_id_ptr is not None:
        s = tl.where(tl.load(y_id_ptr + cols, mask=cols < C, other=0) == row_id, -INF, s)
    return tl.where(cols < C, s, -INF)


@triton.jit
def chunk_rows_kernel(
    s_ptr, x_id_ptr, y_id_ptr, bias_ptr, factor_ptr, top_ptr, sum_ptr, p_ptr, C, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """Row program_id of S (R, C) -> its maximum and sum of 2^(s2 - maximum); with p_ptr also P (R, C). No barrier in the loop:
    each lane keeps a maximum and a sum of its own."""
    row = tl.program_id(0).to(tl.int64)
    scale2 = load_scale(scale, factor_ptr) * LOG2E
    row_id = tl.load(x_id_ptr + row) if x_id_ptr is not None else 0
    top = tl.full((BLOCK,), -INF, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, C, BLOCK):
        s = _row_logits(s_ptr + row * C, start + tl.arange(0, BLOCK), C, row_id, y_id_ptr, bias_ptr, scale2)  # (BLOCK,)
        new = tl.maximum(top, s)
        safe = tl.where(new == -INF, 0.0, new)
        total = total * tl.exp2(top - safe) + tl.exp2(s - safe)
        top = new
    best = tl.max(top, 0)
    safe_best = tl.where(best == -INF, 0.0, best)
    tl.store(top_ptr + row, best)
    tl.store(sum_ptr + row, tl.sum(total * tl.exp2(top - safe_best), 0))
    if p_ptr is not None:
        for start in range(0, C, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            s = _row_logits(s_ptr + row * C, cols, C, row_id, y_id_ptr, bias_ptr, scale2)
            tl.store(p_ptr + row * C + cols, tl.exp2(s - safe_best).to(p_ptr.dtype.element_ty), mask=cols < C)


@triton.jit
def chunk_weights_kernel(
    s_ptr, w_ptr, x_id_ptr, y_id_ptr, bias_ptr, row_bias_ptr, factor_ptr, row_l_ptr, row_w_ptr, col_l_ptr, col_w_ptr,
    dbias_ptr, R, C, scale, SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """S (R, C) -> gain W (R, C); dbias (R / BM, C): sums of g_i p_ij over the rows of each tile. grid (C / BN, R / BM)."""
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
    w = w_i[:, None] * tl.exp2(own - l_i[:, None])
    if dbias_ptr is not None:
        tl.store(dbias_ptr + tl.program_id(1).to(tl.int64) * C + cols, tl.sum(w, 0), mask=cols < C)
    if SYMMETRIC:
        l_j = tl.load(col_l_ptr + cols, mask=cols < C, other=INF)  # (BN,)
        w_j = tl.load(col_w_ptr + cols, mask=cols < C, other=0.0)
        if row_bias_ptr is not None:
            s += tl.load(row_bias_ptr + rows, mask=rows < R, other=0.0).to(tl.float32)[:, None] * LOG2E
        w += w_j[None, :] * tl.exp2(s - l_j[None, :])
    if w_ptr is not None:
        tl.store(w_ptr + at, w.to(w_ptr.dtype.element_ty), mask=tile)


def forward(x, y, scale, factor, x_id, y_id, bias, want_mean: bool) -> tuple[Tensor, Tensor | None]:
    """lse (N,) and, one-pass, mean (N, D), both float32; x (N, D), y (M, D)."""
    new = {"dtype": torch.float32, "device": x.device}
    lse = torch.empty(x.shape[0], **new)
    mean = torch.empty(x.shape, **new) if want_mean else None
    chunk_r, chunk_c = chunk_shape(x.shape[0], y.shape[0])
    columns = _pieces(y.shape[0], chunk_c)
    for rows in _pieces(x.shape[0], chunk_r):
        count = rows.stop - rows.start
        top, total = torch.empty((2, len(columns), count), **new)
        acc = torch.empty((len(columns), count, x.shape[1]), **new) if want_mean else None
        for k, cols in enumerate(columns):
            s = _mm(x[rows], y[cols].t())  # (R, C)
            p = torch.empty(s.shape, dtype=x.dtype, device=x.device) if want_mean else None
            ids = _cut(x_id, rows), _cut(y_id, cols)
            chunk_rows_kernel[(count,)](s, *ids, _cut(bias, cols), factor, top[k], total[k], p, s.shape[1], scale, 1024)
            if want_mean:
                acc[k] = _mm(p, y[cols])
        merge(top, total, acc, lse[rows], _cut(mean, rows))
    return lse, mean


def _chunk_weights(s, rows, cols, terms, scale, factor, x_id, y_id, bias, symmetric, want_w, dtype, dbias):
    """W (R, C) of one chunk, or None; adds its column sums to dbias (M,), where one is given."""
    w = torch.empty(s.shape, dtype=dtype, device=s.device) if want_w else None
    bm, bn = 32, 128  # 4,096 elements: 32 a thread
    grid = (triton.cdiv(s.shape[1], bn), triton.cdiv(s.shape[0], bm))
    sums = None if dbias is None else torch.empty((grid[1], s.shape[1]), dtype=torch.float32, device=s.device)
    other = cols if symmetric else slice(0, 0)
    chunk_weights_kernel[grid](
        s, w, _cut(x_id, rows), _cut(y_id, cols), _cut(bias, cols), _cut(bias, rows) if symmetric else None, factor,
        *terms[:2, rows], *terms[:2, other], sums, *s.shape, scale, symmetric, bm, bn,
    )  # fmt: skip
    if dbias is not None:
        dbias[cols] += sums.sum(0)
    return w


def backward(g, lse, x, y, scale, factor, x_id, y_id, bias, symmetric, need, outputs) -> None:
    """Fills outputs = (dx, dy, dbias, dots (N,) or (M,)), those that ``need`` asks for; dscale is the sum of the dots."""
    dx, dy, dbias, dots = outputs
    new = {"dtype": torch.float32, "device": x.device}
    terms, stats = row_terms(lse, g, x.dtype)
    want_y = not symmetric and need[1]
    want_x = need[0] or (need[3] and not want_y)
    sum_y = torch.zeros(y.shape, **new) if want_y else None
    sum_bias = torch.zeros(y.shape[0], **new) if need[2] else None
    chunk_r, chunk_c = chunk_shape(x.shape[0], y.shape[0])
    for rows in _pieces(x.shape[0], chunk_r):
        sum_x = None
        for cols in _pieces(y.shape[0], chunk_c):
            s = _mm(x[rows], y[cols].t())  # (R, C)
            w = _chunk_weights(
                s, rows, cols, terms, scale, factor, x_id, y_id, bias, symmetric, want_x or want_y, x.dtype, sum_bias
            )
            if want_x:
                part = _mm(w, y[cols])
                sum_x = part if sum_x is None else sum_x.add_(part)
            if want_y:
                sum_y[cols] += _mm(w.t(), x[rows])
        if want_x:
            finish(sum_x[None], stats, scale, factor, _cut(dx, rows), x[rows], _cut(dots, rows), 0.5 if symmetric else 1.0)
    if want_y:
        finish(sum_y[None], stats, scale, factor, dy, y, None if want_x else dots)
    if need[2]:
        finish(sum_bias[None, :, None], stats, 1.0, None, dbias)
