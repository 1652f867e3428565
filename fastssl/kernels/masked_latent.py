"""masked_latent in Triton: rows of the target are gathered, normalised and compared in one program, and the gradient is written.

    h = (t - mean) / sqrt(var + eps) of row ids[p, k] of sample p mod N,   e = pred[p, k] - h
    row[p, k] = w mean_i d(e_i),   loss = s sum of rows,   dpred_i = g s w d'(e_i) / D,   s = 1 / (P K) for a mean, otherwise 1

Bytes, of M = P K D elements: 2 M read, and M written where the gradient is wanted. FLOP: about 12 M, so the memory decides. A
program holds its rows up to D = 4096; wider rows are read three times, twice of these from a cache. Rows of weight 0 and
ids out of range are not read.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new

LOSSES = {"l1": 0, "l2": 1, "smooth_l1": 2, "power": 3}


@triton.jit
def _tile(ptr, places, start, read, D, BD: tl.constexpr):
    """(BR, BD) of rows that begin at ``places``, in float32, zeros outside."""
    dims = start + tl.arange(0, BD)
    mask = read[:, None] & (dims[None, :] < D)
    return tl.load(ptr + places[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _squares(t, mean, start, D, BD: tl.constexpr):
    """Sums of (t - mean)^2 over the columns that are there, (BR,)."""
    centred = tl.where((start + tl.arange(0, BD))[None, :] < D, t - mean[:, None], 0.0)
    return tl.sum(centred * centred, 1)


@triton.jit
def _terms(e, value, LOSS: tl.constexpr):
    """d(e) and d'(e)."""
    size = tl.abs(e)
    sign = tl.where(e > 0.0, 1.0, tl.where(e < 0.0, -1.0, e))  # e itself: 0, or NaN
    if LOSS == 0:
        each = size
        slope = sign
    elif LOSS == 1:
        each = e * e
        slope = 2.0 * e
    elif LOSS == 2:
        near = size < value
        each = tl.where(near, 0.5 * e * e / value, size - 0.5 * value)
        slope = tl.where(near, e / value, sign)
    else:
        power = tl.where(size == 0.0, 0.0, tl.exp2((value - 1.0) * tl.log2(tl.where(size == 0.0, 1.0, size))))
        each = power * size / value
        slope = sign * power
    return each, slope


@triton.jit
def _compare(
    pred_ptr, target_ptr, dpred_ptr, places, rows, t, mean, scale, size, start, inside, read, D, value,
    LOSS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Sums of d(e) over columns start ... (BR,); the gradient is stored where there is room for it. t: these columns' target."""
    dims = start + tl.arange(0, BD)
    there = dims[None, :] < D
    e = _tile(pred_ptr, places, start, read, D, BD) - (t - mean[:, None]) * scale[:, None]
    each, slope = _terms(e, value, LOSS)
    if dpred_ptr is not None:
        gradient = tl.where(read[:, None], slope * size[:, None], 0.0).to(dpred_ptr.dtype.element_ty)
        tl.store(dpred_ptr + rows[:, None] * D + dims[None, :], gradient, mask=inside[:, None] & there)
    return tl.sum(tl.where(there, each, 0.0), 1)


@triton.jit(do_not_specialize=["R", "K", "N", "L"])
def masked_latent_kernel(
    pred_ptr, target_ptr, ids_ptr, weight_ptr, grad_ptr, row_ptr, dpred_ptr, R, K, N, L, D, s_p, s_k, s_n, s_l, s_grad, share,
    value, eps, LOSS: tl.constexpr, NORMALIZE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows program_id * BR ... of R = P K: row (R,), dpred (R, D). grid (R / BR,)"""
    rows = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    inside = rows < R
    sample, token = rows // K, rows % K
    if ids_ptr is None:
        ids = token
    else:
        ids = tl.load(ids_ptr + rows, mask=inside, other=0)
    read = inside & (ids >= 0) & (ids < L)
    if weight_ptr is None:
        weight = tl.where(read, 1.0, 0.0)
    else:
        weight = tl.load(weight_ptr + rows, mask=read, other=0.0)
        read = read & (weight != 0.0)
    size = weight * (share / D)
    if grad_ptr is not None:
        size = size * tl.load(grad_ptr + rows * s_grad, mask=inside, other=0.0)
    places = (sample % N) * s_n + ids * s_l
    t = _tile(target_ptr, places, 0, read, D, BD)  # (BR, BD)
    mean = tl.zeros((BR,), tl.float32)
    scale = mean + 1.0
    if NORMALIZE:
        total = tl.sum(t, 1)
        for start in range(BD, D, BD):
            total += tl.sum(_tile(target_ptr, places, start, read, D, BD), 1)
        mean = total / D
        square = _squares(t, mean, 0, D, BD)
        for start in range(BD, D, BD):
            square += _squares(_tile(target_ptr, places, start, read, D, BD), mean, start, D, BD)
        scale = 1.0 / tl.sqrt(square / D + eps)
    own = sample * s_p + token * s_k
    found = _compare(
        pred_ptr, target_ptr, dpred_ptr, own, rows, t, mean, scale, size, 0, inside, read, D, value, LOSS, BD
    )  # fmt: skip
    for start in range(BD, D, BD):
        more = _tile(target_ptr, places, start, read, D, BD)
        found += _compare(
            pred_ptr, target_ptr, dpred_ptr, own, rows, more, mean, scale, size, start, inside, read, D, value, LOSS, BD
        )  # fmt: skip
    if row_ptr is not None:
        tl.store(row_ptr + rows, tl.where(read, weight * found / D, 0.0), mask=inside)


@triton.jit(do_not_specialize=["R"])
def latent_sum_kernel(row_ptr, total_ptr, R, share, BLOCK: tl.constexpr):
    """row (R,) -> total () = share times their sum. grid (1,)"""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, R, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        total += tl.load(row_ptr + rows, mask=rows < R, other=0.0).to(tl.float64)
    tl.store(total_ptr, (tl.sum(total, 0) * share).to(tl.float32))


@functools.lru_cache(maxsize=64)
def tile_shape(width: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: 1,024 elements of each operand, and long rows up to 4,096, 8 elements a thread, since 16
    spill on sm_100 and sm_120."""
    bd = min(triton.next_power_of_2(width), 4096)
    br = max(1, 1024 // bd)
    return br, bd, max(4, br * bd // 256)


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(2) == 1 else t.contiguous()


def _launch(grad, row, dpred, pred, target, ids, weight, loss, value, normalize, eps, mean) -> None:
    pred, target = _rows(pred), _rows(target)
    tokens, width = pred.shape[1:]
    rows = pred.shape[0] * tokens
    br, bd, warps = tile_shape(width)
    with on_device(pred):
        launch(
            masked_latent_kernel, (triton.cdiv(rows, br),), pred, target, None if ids is None else ids.contiguous(),
            None if weight is None else weight.contiguous(), grad, row, dpred, rows, tokens, target.shape[0], target.shape[1],
            width, pred.stride(0), pred.stride(1), target.stride(0), target.stride(1), int(grad is not None and grad.dim() > 0),
            _share(pred, mean), float(value), float(eps), LOSS=LOSSES[loss], NORMALIZE=normalize, BR=br, BD=bd, num_warps=warps,
        )  # fmt: skip


def _share(pred: Tensor, mean: bool) -> float:
    return 1.0 / (pred.shape[0] * pred.shape[1]) if mean else 1.0


def _sum(row: Tensor, share: float) -> Tensor:
    (total,) = new(row, torch.float32, ())
    with on_device(row):
        launch(latent_sum_kernel, (1,), row, total, row.numel(), share, BLOCK=4096, num_warps=16)
    return total


def masked_latent_fwd(pred: Tensor, target, ids, weight, loss, value, normalize, eps, mean) -> tuple[Tensor, Tensor]:
    """The loss () and the losses of the rows (P, K), float32."""
    (row,) = new(pred, torch.float32, (pred.shape[0], pred.shape[1]))
    _launch(None, row, None, pred, target, ids, weight, loss, value, normalize, eps, mean)
    return _sum(row, _share(pred, mean)), row


def masked_latent_one_pass(pred: Tensor, target, ids, weight, loss, value, normalize, eps, mean) -> tuple[Tensor, Tensor]:
    """The loss (), float32, and dpred (P, K, D) for an upstream gradient of 1."""
    (row,) = new(pred, torch.float32, (pred.shape[0], pred.shape[1]))
    (dpred,) = new(pred, pred.dtype, tuple(pred.shape))
    _launch(None, row, dpred, pred, target, ids, weight, loss, value, normalize, eps, mean)
    return _sum(row, _share(pred, mean)), dpred


def masked_latent_bwd(grad: Tensor, pred: Tensor, target, ids, weight, loss, value, normalize, eps, mean) -> Tensor:
    """dpred (P, K, D), of the loss for grad (), of the losses of the rows for grad (P, K)."""
    (dpred,) = new(pred, pred.dtype, tuple(pred.shape))
    _launch(grad.contiguous(), None, dpred, pred, target, ids, weight, loss, value, normalize, eps, mean)
    return dpred
