"""The pairwise sigmoid loss for rows wider than a tile: the vendor's matrix products on chunks that stay in L2, with one fused
kernel between the products.

    S = a_chunk b_chunk^T (R, C) float32, 4 R C <= 32 MB -> W = -t v sigmoid(-t l) in the dtype of the inputs (float32: in place),
    and of each row the sums of v softplus(-t l), of w and of w s;      da_chunk += scale W b,   db_chunk += scale W^T a

FLOP: U for loss and sums, 2U with the gradient of one side, and 3U with those of both, since both use the same S. HBM: a is read
once for each chunk of columns and b once for each chunk of rows; the same holds for their float32 gradients. The size of the
chunks depends on the shape alone.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import SigmoidPair

from .host.launch import launch
from .sigmoid_pair_terms import Sums, add_up, load_gain, load_sum, log1p_unit, sigmoid_terms
from .similarity_chunked import mm, pieces
from .tiles.config import chunk_shape
from .tiles.merge import INF, finish, load_scale

_SPAN = 4096  # columns of a program


@triton.jit
def sigmoid_chunk_kernel(
    s_ptr, w_ptr, a_id_ptr, b_id_ptr, a_weight_ptr, b_weight_ptr, factor_ptr, term_ptr, stats_ptr,
    loss_ptr, sum_ptr, dot_ptr, C, stride, scale, bias, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns SPAN columns of row program_id(0) of S (R, C) into gain W (R, C), and adds their sums to [program_id(1), row] of the
    sums (P, stride)."""
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


def _weights(part: SigmoidPair, stats: Tensor | None, wanted: list[Tensor | None], stride: int, want_w: bool) -> Tensor:
    """W (R, C) of one chunk, or (0,) where W is not wanted. The chunk's row sums are added to those of ``wanted`` (P, stride) that
    are not None."""
    s = mm(part.x, part.y.t())  # (R, C)
    in_place = want_w and part.x.dtype == torch.float32
    w = s if in_place else torch.empty(s.shape if want_w else (0,), dtype=part.x.dtype, device=s.device)
    launch(
        sigmoid_chunk_kernel, (s.shape[0], triton.cdiv(s.shape[1], _SPAN)),
        s, w if want_w else None, part.x_id, part.y_id, part.x_weight, part.y_weight,
        part.scale_factor, part.bias_term, stats, *wanted,
        s.shape[1], stride, part.scale, part.bias, SPAN=_SPAN, BLOCK=min(_SPAN, 1024),
    )  # fmt: skip
    return w


def sweep(pair: SigmoidPair, stats: Tensor | None, own: Tensor | None, other: Tensor | None, sums: Sums) -> None:
    """Fills those of own (N, D), other (M, D) and the sums that are given."""
    new: dict[str, Any] = {"dtype": torch.float32, "device": pair.x.device}
    n, m = pair.x.shape[0], pair.y.shape[0]
    chunk_r, chunk_c = chunk_shape(n, m)
    rows_of = torch.zeros((3, triton.cdiv(chunk_c, _SPAN), triton.cdiv(n, 16) * 16), **new)
    sum_y = None if other is None else torch.zeros(pair.y.shape, **new)
    for rows in pieces(n, chunk_r):
        wanted = [None if t is None else rows_of[k, :, rows] for k, t in enumerate(sums)]
        sum_x = None
        for cols in pieces(m, chunk_c):
            part = pair.part(rows, cols)
            w = _weights(part, stats, wanted, rows_of.stride(1), own is not None or sum_y is not None)
            if own is not None:
                gradient = mm(w, part.y)
                sum_x = gradient if sum_x is None else sum_x.add_(gradient)
            if sum_y is not None:
                sum_y[cols] += mm(w.t(), part.x)
        if own is not None and sum_x is not None:
            finish(sum_x[None], stats, pair.scale, pair.scale_factor, own[rows])
    if sum_y is not None:
        finish(sum_y[None], stats, pair.scale, pair.scale_factor, other)
    add_up(rows_of.flatten(1), sums)
