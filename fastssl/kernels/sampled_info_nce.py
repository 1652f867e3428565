"""InfoNCE over sampled negatives in Triton: rows of the table are read where the index names them, and never written together.

    s_ie = <x_i, y_{index_ie}>,  -inf for e > 0 where the row equals the positive's      index (M, E), x, y rows at unit length
    L_i = lse_i - scale s_i0,    G_i = (scale / |c_i|) (sum_e p_ie y_{index_ie} - y_i0 - slope_i x_i)
    dq_k = (scale / |q_k|) sum over (i, e) with index_ie = k of dL_i (p_ie - [e = 0]) (x_i - s_ie y_k)

Two schedules were counted at M = K = 2100, E = 101, D = 256 in float32, forward and both gradients:

    gather and dot     6 M E D = 0.33 GFLOP on the plain units, 3 reads of M E D = 651 MB, all but 4 MB of it from the L2 cache
    dense tiles        6 M K D = 6.8 GFLOP on the tensor units, and besides (M, K) counts of the index, which atomics must make

At 5 TB/s of L2 and 60 TFLOP/s of products in full float32 both take some 0.12 ms, and bfloat16 halves the first. But the dense one
grows with K, which transformers makes all frames of a batch, and holds M K entries. So rows are gathered. A program of the forward
owns a query: it reads each of the E rows once, for s, for the comparison with the positive and, with a running maximum, for G; that
makes 2 reads of M E D in place of 3. A program of the other kernel owns a row of a gradient and sums its entries in their order:
those of dq are found by a stable sort of the index, so that no atomics are needed. It serves G, too, of rows beyond ``WIDEST``.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new

WIDEST = 1024  # columns of a row that a program holds


@triton.jit
def _load(ptr, rows, start, read, D, BD: tl.constexpr):
    """(BE, BD) of the rows of a dense matrix, in float32, zeros outside."""
    dims = start + tl.arange(0, BD)
    mask = read[:, None] & (dims[None, :] < D)
    return tl.load(ptr + rows[:, None] * D + dims[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _row(ptr, row, start, D, BD: tl.constexpr):
    dims = start + tl.arange(0, BD)
    return tl.load(ptr + row * D + dims, mask=dims < D, other=0.0).to(tl.float32)


@triton.jit
def _one_over(ptr, rows, read, eps):
    """1 / max(length, eps) of rows."""
    length = tl.load(ptr + rows, mask=read, other=1.0)
    return 1.0 / tl.where(length < eps, eps, length)


@triton.jit
def _logits(cosines, scale):
    return tl.where(cosines == float("-inf"), cosines, scale * cosines)


@triton.jit(do_not_specialize=["K", "E"])
def sampled_info_nce_fwd_kernel(
    query_ptr, keys_ptr, index_ptr, scale_ptr, query_length_ptr, length_ptr, loss_ptr, slope_ptr, lse_ptr, cosine_ptr, dquery_ptr,
    K, E, D, eps, WIDE: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Query program_id: loss, slope, lse (M,), cosines (M, E) and, where wanted, dquery (M, D). grid (M,)"""
    i = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr)
    length = tl.load(query_length_ptr + i)
    inverse = 1.0 / tl.where(length < eps, eps, length)
    x = _row(query_ptr, i, 0, D, BD) * inverse
    first = tl.load(index_ptr + i * E)
    named = (first >= 0) & (first < K)
    first = tl.where(named, first, 0)
    positive = _row(keys_ptr, first, 0, D, BD)
    peak = float("-inf")
    total = 0.0
    weighted = 0.0
    own = 0.0
    together = tl.zeros((BD,), tl.float32)
    for start in range(0, E, BE):
        entries = start + tl.arange(0, BE)
        ids = tl.load(index_ptr + i * E + entries, mask=entries < E, other=0)
        known = (ids >= 0) & (ids < K)
        read = known & (entries < E)
        rows = _load(keys_ptr, ids, 0, read, D, BD)
        products = tl.sum(rows * x[None, :], 1)
        equal = tl.min((rows == positive[None, :]).to(tl.int32), 1)
        if WIDE:
            for more in range(BD, D, BD):
                part = _load(keys_ptr, ids, more, read, D, BD)
                products += tl.sum(part * (_row(query_ptr, i, more, D, BD) * inverse)[None, :], 1)
                equal = tl.minimum(equal, tl.min((part == _row(keys_ptr, first, more, D, BD)[None, :]).to(tl.int32), 1))
        over = _one_over(length_ptr, ids, read, eps)
        cosines = tl.where(known & named, products * over, float("nan"))
        cosines = tl.where((entries >= E) | (known & (equal != 0) & (entries > 0)), float("-inf"), cosines)
        tl.store(cosine_ptr + i * E + entries, cosines, mask=entries < E)
        logits = _logits(cosines, scale)
        highest = tl.maximum(peak, tl.max(logits, 0))
        share = tl.exp(logits - highest)
        before = tl.exp(peak - highest)
        total = total * before + tl.sum(share, 0)
        weighted = weighted * before + tl.sum(share * tl.where(cosines == float("-inf"), 0.0, cosines), 0)
        own += tl.sum(tl.where(entries == 0, cosines, 0.0), 0)
        if dquery_ptr is not None:
            together = together * before + tl.sum((share * over)[:, None] * rows, 0)
        peak = highest
    lse = peak + tl.log(total)
    slope = weighted / total - own
    tl.store(lse_ptr + i, lse)
    tl.store(loss_ptr + i, lse - scale * own)
    tl.store(slope_ptr + i, slope)
    if dquery_ptr is not None:
        over = 1.0 / tl.maximum(tl.load(length_ptr + first), eps)
        toward = together / total - positive * over - tl.where(length < eps, 0.0, slope) * x
        dims = tl.arange(0, BD)
        tl.store(dquery_ptr + i * D + dims, scale * inverse * toward, mask=dims < D)


@triton.jit(do_not_specialize=["E"])
def sampled_info_nce_combine_kernel(
    own_ptr, own_length_ptr, other_ptr, other_length_ptr, index_ptr, start_ptr, order_ptr, dloss_ptr, scale_ptr, lse_ptr,
    cosine_ptr, out_ptr, E, D, eps, KEYS: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Columns program_id(1) * BD ... of row program_id(0) of the gradient of the keys or of G. grid (rows, D / BD)

    The entries of a key are order[start[k]] ... order[start[k + 1] - 1], those of a query i E ... i E + E - 1.
    """
    r = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BD
    if KEYS:
        low = tl.load(start_ptr + r)
        high = tl.load(start_ptr + r + 1)
    else:
        low = r * E
        high = low + E
    scale = tl.load(scale_ptr)
    total = tl.zeros((BD,), tl.float32)
    along = 0.0
    for start in range(low, high, BE):
        entries = start + tl.arange(0, BE).to(tl.int64)
        inside = entries < high
        if KEYS:
            entries = tl.load(order_ptr + entries, mask=inside, other=0)
        query = entries // E
        cosines = tl.load(cosine_ptr + entries, mask=inside, other=float("-inf"))
        share = tl.exp(_logits(cosines, scale) - tl.load(lse_ptr + query, mask=inside, other=0.0))
        weight = share - tl.where(inside & (entries % E == 0), 1.0, 0.0)
        if KEYS:
            weight *= tl.load(dloss_ptr + query, mask=inside, other=0.0)
            other = query
        else:
            other = tl.load(index_ptr + entries, mask=inside, other=0)
            inside = inside & (cosines == cosines)  # an id that names no row
        over = _one_over(other_length_ptr, other, inside, eps)
        total += tl.sum((weight * over)[:, None] * _load(other_ptr, other, begin, inside, D, BD), 0)
        along += tl.sum(weight * tl.where(cosines == float("-inf"), 0.0, cosines), 0)
    length = tl.load(own_length_ptr + r)
    inverse = 1.0 / tl.where(length < eps, eps, length)
    own = _row(own_ptr, r, begin, D, BD) * inverse
    dims = begin + tl.arange(0, BD)
    found = scale * inverse * (total - tl.where(length < eps, 0.0, along) * own)
    tl.store(out_ptr + r * D + dims, found.to(out_ptr.dtype.element_ty), mask=dims < D)


@functools.lru_cache(maxsize=64)
def tile_shape(width: int) -> tuple[int, int]:
    """(entries, columns) of a tile: 4,096 elements, 32 for each thread of 4 warps."""
    bd = min(triton.next_power_of_2(width), WIDEST)
    return min(4096 // bd, 64), bd


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)


def sampled_info_nce_fwd(
    query: Tensor, keys: Tensor, index: Tensor, scale: Tensor, eps: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query (M, D), keys (K, D), index (M, E) -> loss, slope and lse (M,), cosines (M, E), dquery (M, D) or (M, 0)."""
    query, keys, index = query.contiguous(), keys.contiguous(), index.contiguous()
    (count, width), drawn = query.shape, index.shape[1]
    loss, slope, lse = new(query, torch.float32, (count,), (count,), (count,))
    cosines, dquery = new(query, torch.float32, (count, drawn), (count, width if gradient else 0))
    be, bd = tile_shape(width)
    lengths, wide = (_lengths(query), _lengths(keys)), width > bd
    with on_device(query):
        launch(
            sampled_info_nce_fwd_kernel, (count,), query, keys, index, scale, *lengths, loss, slope, lse, cosines,
            dquery if gradient and not wide else None, len(keys), drawn, width, float(eps), WIDE=wide, BE=be, BD=bd, num_warps=4,
        )  # fmt: skip
        if gradient and wide:
            launch(
                sampled_info_nce_combine_kernel, (count, triton.cdiv(width, bd)), query, lengths[0], keys, lengths[1], index, None,
                None, None, scale, lse, cosines, dquery, drawn, width, float(eps), KEYS=False, BE=be, BD=bd, num_warps=4,
            )  # fmt: skip
    return loss, slope, lse, cosines, dquery


def sampled_info_nce_bwd(
    dloss: Tensor, query: Tensor, keys: Tensor, index: Tensor, scale: Tensor, lse: Tensor, cosines: Tensor, eps: float
) -> Tensor:
    """dloss (M,) -> the gradient of keys (K, D)."""
    query, keys, dloss = query.contiguous(), keys.contiguous(), dloss.to(torch.float32).contiguous()
    width, drawn = keys.shape[1], index.shape[1]
    named, order = index.flatten().to(torch.int32).sort(stable=True)
    starts = torch.searchsorted(named, torch.arange(len(keys) + 1, dtype=torch.int32, device=keys.device))
    (out,) = new(keys, keys.dtype, tuple(keys.shape))
    be, bd = tile_shape(width)
    with on_device(query):
        launch(
            sampled_info_nce_combine_kernel, (len(keys), triton.cdiv(width, bd)), keys, _lengths(keys), query, _lengths(query),
            None, starts, order, dloss, scale, lse.contiguous(), cosines.contiguous(), out, drawn, width, float(eps), KEYS=True,
            BE=be, BD=bd, num_warps=4,
        )  # fmt: skip
    return out
