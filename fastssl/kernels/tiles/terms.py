"""The terms of each row that the weights of a backward need. One program makes them from the forward's state.

    p_ij = 2^min(s2_ij - t_i, 0) / S_i          base 2; the state (t, S) of a row is that of ``merge.py``
    g_i p_ij = w_i 2^(s2_ij - l'_i),   l' = t, w = gain g / S, v = w 2^(c - t)

``row_terms_kernel`` says what c, gain and the stats are.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..host.launch import launch
from ..host.tensors import new, rows_of
from .merge import INF

# Rows and columns whose l = t + log2 S lie within +-FAR may share one exponential, although nothing then cuts a weight off at 1.
# The last bit of such a logit is at most 2^-11, so that a forward's and a backward's product of one tile, if they differ at all,
# change a weight by less than the rounding of 16-bit or TF32 operands does. A tile in "ieee" float32 adds up each logit in the same
# order wherever it lies.
FAR = tl.constexpr(4096.0)


@triton.jit
def _extremes(low, high, most, top_ptr, total_ptr, g_ptr, N, s_g, NORMALISE: tl.constexpr, BLOCK: tl.constexpr):
    """Running minimum and maximum of l = t + log2 S over N rows and, if NORMALISE, the largest |g| of the rows that have a column
    which is not excluded; each (BLOCK,)."""
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
    """l' = t, w = gain g / S and v = w 2^(c - t), each (N,), from the state (t, S) of each row, so that gain p g = w 2^(s2 - l').

    stats (3,) are c, the middle of all l = t + log2 S; whether all l lie within 64 of each other and within +-FAR (1 or 0); and
    1 / gain. A row whose columns are all excluded gets +inf, 0, 0. The gain scales float16 weights g p, which are as small as 2^-32
    for a mean over 65,536 rows, so that the largest |g| is 2^14; for other types it is 1. The second vectors (N2,), where given,
    share the stats. The only program reads 20N bytes and writes 12N.
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


class Terms(NamedTuple):
    """What the weights of a backward need of the rows of x and of y: l', w and v as one (3, N) each, and the stats."""

    of_x: Tensor | None  # (3, N), or None where no term of the weights belongs to the rows of x
    of_y: Tensor | None  # (3, M), or None likewise
    stats: Tensor  # (3,)

    def swapped(self) -> "Terms":
        return Terms(self.of_y, self.of_x, self.stats)


def vectors(terms: Tensor | None) -> tuple[Tensor | None, ...]:
    """l', w and v (N,) of terms (3, N)."""
    return (None,) * 3 if terms is None else rows_of(terms)


def row_terms(
    state: Tensor,  # (2, N)
    g: Tensor,  # (N,)
    dtype: torch.dtype,
    state2: Tensor | None = None,  # (2, M)
    g2: Tensor | None = None,  # (M,)
) -> Terms:
    """The terms of N rows and, where given, of M columns, and the stats that they share, in float32 and on the device.

    ``dtype`` is the dtype of the products in which the weights are operands. Each vector is aligned to 64 bytes.
    """
    given = (g,) if g2 is None else (g, g2)
    *terms, stats = new(g, torch.float32, *((3, triton.cdiv(len(v), 16) * 16) for v in given), (3,))
    terms = [t if t.shape[1] == len(v) else t[:, : len(v)] for t, v in zip(terms, given, strict=True)]
    of_x, of_y = terms[0], None if g2 is None else terms[1]
    second: tuple[Tensor | None, ...] = (None,) * 6
    count2 = s_g2 = 0
    if state2 is not None and g2 is not None:
        second, count2, s_g2 = (*rows_of(state2), g2, *rows_of(terms[1])), len(g2), g2.stride(0)
    launch(
        row_terms_kernel, (1,), *rows_of(state), g, *rows_of(of_x), *second, stats, len(g), g.stride(0), count2, s_g2,
        NORMALISE=dtype == torch.float16, BLOCK=4096, num_warps=16,
    )  # fmt: skip
    return Terms(of_x, of_y, stats)
