"""The pairwise sigmoid loss above the width of a tile: the vendor's product on chunks that stay in L2, one fused kernel between.

    S = a_chunk b_chunk^T (R, C) float32, 4 R C <= 32 MB -> W = -t v sigmoid(-t l) in the dtype of the inputs (float32: in place),
    and of each row the sums of v softplus(-t l), of w and of w s;      da_chunk += scale W b,   db_chunk += scale W^T a

FLOP: U for loss and sums, 2U with one side's gradient, 3U with both: one S serves both sides. HBM: a once for each chunk of
columns, b once for each chunk of rows, and so for the float32 gradients. Chunks are a function of the shape alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.launch import launch
from .sigmoid_pair_terms import Logits, Pair, load_gain, load_sum, log1p_unit, sigmoid_terms, sums
from .similarity_chunked import _mm, _pieces
from .tiles.config import chunk_shape
from .tiles.merge import INF, finish, load_scale

_SPAN = 4096  # columns of a program


@triton.jit
def sigmoid_chunk_kernel(
    s_ptr, w_ptr, a_id_ptr, b_id_ptr, a_weight_ptr, b_weight_ptr, factor_ptr, term_ptr, stats_ptr,
    loss_ptr, sum_ptr, dot_ptr, C, stride, scale, bias, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SPAN columns of row program_id(0) of S (R, C) -> gain W (R, C), and += sums at [program_id(1), row] of (P, stride)."""
    row = tl.program_id(0).to(tl.int64)
    low = tl.program_id(1) * SPAN
    scale = load_scale(scale, factor_ptr)
    bias = load_sum(bias, term_ptr)
    gain = load_gain(stats_ptr)
    a_id = tl.load(a_id_ptr + row)
    losses = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    dots = tl.zeros((BLOCK,), tl.float32)
    for start in range(low, tl.minimum(low + SPAN, C), BLOCK):
        cols = start + tl.arange(0, BLOCK)
        s = tl.load(s_ptr + row * C + cols, mask=cols < C, other=0.0)  # (BLOCK,)
        positive = tl.load(b_id_ptr + cols, mask=cols < C, other=0) == a_id
        u = s * scale + bias
        u = tl.where(cols < C, tl.where(positive, -u, u), -INF)
        e, w = sigmoid_terms(u)
        loss = tl.maximum(u, 0.0) + log1p_unit(e)
        if a_weight_ptr is not None:
            weight = tl.load(b_weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)  # (BLOCK,)
            v = tl.where(positive, weight + tl.load(a_weight_ptr + row).to(tl.float32), 1.0)
            loss *= v
            w *= v
        w = tl.where(positive, -w, w)
        losses += loss
        total += w
        dots += w * s
        if w_ptr is not None:
            tl.store(w_ptr + row * C + cols, (w * gain).to(w_ptr.dtype.element_ty), mask=cols < C)
    at = tl.program_id(1).to(tl.int64) * stride + row
    tl.store(loss_ptr + at, tl.load(loss_ptr + at) + tl.sum(losses, 0))
    if sum_ptr is not None:
        tl.store(sum_ptr + at, tl.load(sum_ptr + at) + tl.sum(total, 0))
    if dot_ptr is not None:
        tl.store(dot_ptr + at, tl.load(dot_ptr + at) + tl.sum(dots, 0))


def _weights(pair: Pair, logits: Logits, wanted: list[Tensor | None], want_w: bool) -> Tensor | None:
    """W (R, C) of one chunk, where it is wanted; adds to the sums (P, stride) of its rows."""
    s = _mm(pair.a, pair.b.t())  # (R, C)
    w = None
    if want_w:
        w = s if pair.a.dtype == torch.float32 else torch.empty(s.shape, dtype=pair.a.dtype, device=s.device)
    scale, factor, bias, term, stats = logits
    stride = wanted[0].stride(0)
    launch(
        sigmoid_chunk_kernel, (s.shape[0], triton.cdiv(s.shape[1], _SPAN)), s, w, *pair[2:], factor, term, stats, *wanted,
        s.shape[1], stride, scale, bias, SPAN=_SPAN, BLOCK=min(_SPAN, 1024),
    )  # fmt: skip
    return w


def sweep(pair: Pair, logits: Logits, own, other, loss: Tensor, dbias: Tensor | None, dscale: Tensor | None) -> None:
    """Fills own (NA, D), other (NB, D), loss, dbias and dscale, those that are given."""
    new = {"dtype": torch.float32, "device": pair.a.device}
    na, nb = pair.a.shape[0], pair.b.shape[0]
    chunk_r, chunk_c = chunk_shape(na, nb)
    rows_of = torch.zeros((3, triton.cdiv(chunk_c, _SPAN), triton.cdiv(na, 16) * 16), **new)
    sum_b = None if other is None else torch.zeros(pair.b.shape, **new)
    cut = lambda t, piece: None if t is None else t[piece]  # noqa: E731
    for rows in _pieces(na, chunk_r):
        wanted = [None if t is None else rows_of[k, :, rows] for k, t in enumerate((loss, dbias, dscale))]
        sum_a = None
        for cols in _pieces(nb, chunk_c):
            both = (rows, cols) * 3
            chunk = Pair(*(cut(t, piece) for t, piece in zip(pair, both, strict=True)))
            w = _weights(chunk, logits, wanted, own is not None)
            if own is not None:
                part = _mm(w, chunk.b)
                sum_a = part if sum_a is None else sum_a.add_(part)
            if other is not None:
                sum_b[cols] += _mm(w.t(), chunk.a)
        if own is not None:
            finish(sum_a[None], logits.stats, logits.scale, logits.factor, own[rows])
    if other is not None:
        finish(sum_b[None], logits.stats, logits.scale, logits.factor, other)
    sums(rows_of.flatten(1), loss, dbias, dscale)
