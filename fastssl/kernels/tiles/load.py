"""Functions with which the similarities' tile kernels load rows, ids and vectors of a tile, compute its logits, and sum them.

    s2_ij = log2(e) (scale <x_i, y_j> + y_bias_j), base 2          -inf where x_id_i = y_id_j and outside the matrix

Where ``row_bounds`` ran, ids are compared only in tiles that may hold equal ones. Thresholds are compared with logits in natural
units, without rounding in base 2, so kernels that count take raw dots.
"""

import triton
import triton.language as tl

from .merge import INF, LOG2E, load_state


@triton.jit
def load_rows(
    ptr, first, count, D, stride, ROWS: tl.constexpr, BD: tl.constexpr, EVEN_ROWS: tl.constexpr, EVEN_D: tl.constexpr, dim_stride=1
):  # fmt: skip
    """(ROWS, BD) from row ``first`` on, with zeros outside (count, D). The offset of the first row has 64 bits, those within the
    tile have 32."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BD)
    tile = ptr + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + dims[None, :] * dim_stride)
    if EVEN_ROWS and EVEN_D:
        return tl.load(tile)
    elif EVEN_ROWS:
        return tl.load(tile, mask=dims[None, :] < D, other=0.0)
    elif EVEN_D:
        return tl.load(tile, mask=first + rows[:, None] < count, other=0.0)
    return tl.load(tile, mask=(first + rows[:, None] < count) & (dims[None, :] < D), other=0.0)


@triton.jit
def may_hold(range_ptr, start, lowest, highest, count, EVEN: tl.constexpr, BN: tl.constexpr):
    """Whether the streamed rows from ``start`` on may hold an id between lowest and highest, or reach past ``count``."""
    at = range_ptr + start // BN * 2
    near = (tl.load(at) <= highest) & (tl.load(at + 1) >= lowest)
    return near if EVEN else near | (start + BN > count)


@triton.jit
def load_ids(id_ptr, rows, count):
    """The ids (rows,), where rows beyond ``count`` get the id of the last row. Without ids, the result is not read."""
    return tl.load(id_ptr + tl.minimum(rows, count - 1)) if id_ptr is not None else rows


@triton.jit
def extent(ids, range_ptr):
    """Lowest and highest of some ids; (0, 0), which is not read, where no ranges are given."""
    if range_ptr is not None:
        return tl.min(ids, 0).to(tl.int64), tl.max(ids, 0).to(tl.int64)
    else:
        return 0, 0


@triton.jit
def load_column(ptr, cols, count, other, EVEN: tl.constexpr):
    return tl.load(ptr + cols) if EVEN else tl.load(ptr + cols, mask=cols < count, other=other)


@triton.jit
def load_bias(bias_ptr, rows, count):
    """Base-2 bias of some rows of y, (rows,)."""
    return tl.load(bias_ptr + rows, mask=rows < count, other=0.0).to(tl.float32) * LOG2E


@triton.jit
def load_threshold(threshold_ptr, rows, count):
    """The thresholds (rows,) in float32. Without thresholds, the result is not read."""
    return tl.load(threshold_ptr + rows, mask=rows < count, other=INF).to(tl.float32) if threshold_ptr is not None else rows


@triton.jit
def signed_unit(scale):
    """(sign, unit > 0) with sign * unit = log2(e) scale. The owned rows are multiplied by the sign, which rounds nothing, so that
    the largest raw dot belongs to the largest logit. At scale 0 the sign is 0 and the unit 1, so that -inf * unit stays -inf."""
    scale2 = scale * LOG2E
    zero = tl.abs(scale2) < 1e-37
    sign = tl.where(zero, 0.0, tl.where(scale2 < 0, -1.0, 1.0))
    return sign, tl.where(zero, 1.0, tl.abs(scale2))


@triton.jit
def excluded(s, a_id, b_id_ptr, cols, count, EVEN: tl.constexpr):
    """s (BM, BN) with -inf where the ids are equal and outside the matrix."""
    if b_id_ptr is not None:
        b_id = tl.load(b_id_ptr + cols, mask=cols < count, other=0)  # (BN,)
        s = tl.where(a_id[:, None] == b_id[None, :], -INF, s)
    if not EVEN:
        s = tl.where(cols[None, :] < count, s, -INF)
    return s


@triton.jit
def masked_dots(a, b, a_id, b_id_ptr, cols, count, EVEN: tl.constexpr, PRECISION: tl.constexpr):
    """(BM, BN) raw dots, with -inf where the ids are equal and outside the matrix."""
    return excluded(tl.dot(a, tl.trans(b), input_precision=PRECISION), a_id, b_id_ptr, cols, count, EVEN)


@triton.jit
def masked_logits(
    a, b, a_id, lowest, highest, b_id_ptr, range_ptr, start, count, scale2, shift,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """(BM, BN) scale2 <a, b> - shift, with -inf where the ids are equal and outside the matrix. A tile that can hold neither is not
    searched for them."""
    cols = start + tl.arange(0, BN)
    s = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    s = s * scale2 - shift  # before the branch: Triton 3.6 cannot pipeline a product that only a branch reads
    if range_ptr is not None:
        if may_hold(range_ptr, start, lowest, highest, count, EVEN, BN):
            s = excluded(s, a_id, b_id_ptr, cols, count, EVEN)
    elif b_id_ptr is not None:  # noqa: SIM114  this condition is known at compile time, the next one only at run time
        s = excluded(s, a_id, b_id_ptr, cols, count, EVEN)
    elif not EVEN and start + BN > count:
        s = excluded(s, a_id, b_id_ptr, cols, count, EVEN)
    return s


@triton.jit
def at_most_top(d, top, EXACT: tl.constexpr):
    """d = s - top, base 2, where ``top`` is the largest logit of the row, cut off at 0 and set to 0 for whatever may be that logit.

    A weight 2^d is then at most 1, and it is 1 where one logit dominates its row, even if this product gave that logit other last
    bits than the forward's product, or if d was rounded once in place of s. A logit within 2^-20 |top| of the largest counts as the
    largest. The limit is 2^-23 |top| if EXACT, which says that the product adds up in the same order wherever a logit lies. A row
    without columns has top = +inf, and its d stays -inf."""
    near = -tl.abs(top) * (1.1920928955078125e-07 if EXACT else 9.5367431640625e-07)
    return tl.where(d > near, 0.0, d)


@triton.jit
def count_above(s, scale, threshold, bias_ptr, cols, count):
    """(BM,) int32: the number of logits |scale| s + bias above the row's threshold (BM,), in natural units; s (BM, BN) is that of
    ``masked_dots``."""
    s = s * tl.abs(scale)  # excluded logits become -inf, or NaN at scale 0; neither is above a threshold
    if bias_ptr is not None:
        s += tl.load(bias_ptr + cols, mask=cols < count, other=0.0).to(tl.float32)[None, :]
    return tl.sum((s > threshold[:, None]).to(tl.int32), 1)


@triton.jit
def plain_sums(s, total, BM: tl.constexpr, BN: tl.constexpr):
    """(0, running sum) of each row of s (BM, BN) and (0, sum) of each column, from one exponential for both; base 2."""
    p = tl.exp2(s)
    return tl.zeros((BM,), tl.float32), total + tl.sum(p, 1), tl.zeros((BN,), tl.float32), tl.sum(p, 0)


@triton.jit
def online_sums(s, top, total):
    """Running (maximum, sum of 2^(s - maximum)) of each row of s (BM, BN), and (maximum, sum) of each column; base 2."""
    column = tl.max(s, 0)
    safe = tl.where(column == -INF, 0.0, column)
    column_sum = tl.sum(tl.exp2(s - safe[None, :]), 0)
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == -INF, 0.0, new)
    return new, total * tl.exp2(top - safe) + tl.sum(tl.exp2(s - safe[:, None]), 1), column, column_sum


@triton.jit
def fold_columns(top_ptr, sum_ptr, more, lo, hi, BLOCK: tl.constexpr):
    """Merges the (maximum, sum) of the columns lo..hi with those that lie ``more`` elements behind them."""
    for start in range(lo, hi, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        top, total = load_state(top_ptr, sum_ptr, cols, cols < hi)  # (BLOCK,)
        top2, total2 = load_state(top_ptr, sum_ptr, more + cols, cols < hi)
        new = tl.maximum(top, top2)
        safe = tl.where(new == -INF, 0.0, new)
        tl.store(top_ptr + cols, new, mask=cols < hi)
        tl.store(sum_ptr + cols, total * tl.exp2(top - safe) + total2 * tl.exp2(top2 - safe), mask=cols < hi)
