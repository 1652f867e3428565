"""What tiles and chunks of ``sigmoid_pair`` share: the two special functions, the operands, and sums of rows.

    e = exp(-|u|)      sigmoid(u) = (1 if u > 0 else e) / (1 + e)      log1p(e) = e P(e), P a polynomial, 3e-8 relative on [0, 1]
    join(p, q) = (1 + p) (1 + q) - 1, all terms >= 0, so nothing cancels

Bytes: the sums of rows are read once.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from fastssl.ops._operands import SigmoidPair

from .host.launch import launch
from .tiles.merge import LN2, LOG2E

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def join(p, q):
    return p + q + p * q


@triton.jit
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1."""
    p = 0.00523268804 * e - 0.0295052137
    p = p * e + 0.0782259107
    p = p * e - 0.136632428
    p = p * e + 0.191060051
    p = p * e - 0.24842982
    p = p * e + 0.333190978
    p = p * e - 0.499994934
    p = p * e + 0.99999994
    return p * e


@triton.jit
def log1p_any(q):
    """log(1 + q) for q >= 0: log2 is good to 2^-22 absolutely, so not for small q."""
    return tl.where(q < 1.0, log1p_unit(q), tl.log2(1.0 + q) * LN2)


@triton.jit
def divide(n, d):
    """n / d, d < 2^126, in two instructions; the interpreter knows no libdevice."""
    if COMPILED:
        return libdevice.fast_dividef(n, d)
    else:
        return n / d


@triton.jit
def sigmoid_terms(u):
    """exp(-|u|) and sigmoid(u), without overflow."""
    e = tl.exp2(tl.abs(u) * -LOG2E)
    return e, divide(tl.where(u > 0.0, 1.0, e), 1.0 + e)


@triton.jit
def load_sum(bias, term_ptr):
    """bias + bias_term, the term read on the device."""
    if term_ptr is not None:
        bias = bias + tl.load(term_ptr).to(tl.float32)
    return bias


@triton.jit
def load_gain(stats_ptr):
    gain = 1.0
    if stats_ptr is not None:
        gain = 1.0 / tl.load(stats_ptr + 2)
    return gain


@triton.jit
def _sum(ptr, out_ptr, K, BLOCK: tl.constexpr):
    if out_ptr is not None:
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, K, BLOCK):
            at = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
            total += tl.load(ptr + at, mask=at < K, other=0.0)  # (BLOCK,)
        tl.store(out_ptr, tl.sum(total, 0).to(tl.float32))


@triton.jit
def sums_kernel(rows_ptr, loss_ptr, dbias_ptr, dscale_ptr, K, stride, BLOCK: tl.constexpr):
    """rows (3, K), those whose pointers are given -> loss, dbias, dscale. grid (3,)"""
    which = tl.program_id(0)
    ptr = rows_ptr + which.to(tl.int64) * stride
    if which == 0:
        _sum(ptr, loss_ptr, K, BLOCK)
    elif which == 1:
        _sum(ptr, dbias_ptr, K, BLOCK)
    else:
        _sum(ptr, dscale_ptr, K, BLOCK)


def float16_stats(pair: SigmoidPair) -> Tensor | None:
    """(3,), whose last element is 1 / gain, or None for a gain of 1.

    A gain brings float16 weights, exp(-10) and less for most pairs, to at most 2^14. Other dtypes need none. No host sync.
    """
    if pair.x.dtype != torch.float16:
        return None
    stats = torch.full((3,), 2.0**-14, dtype=torch.float32, device=pair.x.device)
    if pair.x_weight is not None and pair.y_weight is not None:
        stats *= (pair.x_weight.abs().amax() + pair.y_weight.abs().amax()).clamp(min=1.0)
    return stats


class Sums(NamedTuple):
    """Scalars that a sweep leaves; None for what nobody wants, but the loss is there wherever another is."""

    loss: Tensor | None
    dbias: Tensor | None
    dscale: Tensor | None


def add_up(rows: Tensor, sums: Sums) -> None:
    """rows (3, K) -> the sums, those that are given, in float64 and in a fixed order."""
    launch(sums_kernel, (3,), rows, *sums, rows.shape[1], rows.stride(0), BLOCK=4096, num_warps=16)
