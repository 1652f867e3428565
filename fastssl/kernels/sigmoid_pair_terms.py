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


class Pair(NamedTuple):
    """The side that owns rows, and the one that is streamed."""

    a: Tensor  # (NA, D)
    b: Tensor  # (NB, D)
    a_id: Tensor
    b_id: Tensor
    a_weight: Tensor | None
    b_weight: Tensor | None

    def swapped(self) -> "Pair":
        return Pair(self.b, self.a, self.b_id, self.a_id, self.b_weight, self.a_weight)


class Logits(NamedTuple):
    scale: float
    factor: Tensor | None  # one element
    bias: float
    term: Tensor | None  # one element
    stats: Tensor | None  # (3,), 1 / gain at 2; None: gain 1


def float16_stats(pair: Pair) -> Tensor | None:
    """A gain brings float16 weights, exp(-10) and less for most pairs, to at most 2^14; None for other types. No sync."""
    if pair.a.dtype != torch.float16:
        return None
    stats = torch.full((3,), 2.0**-14, dtype=torch.float32, device=pair.a.device)
    if pair.a_weight is not None:
        stats *= (pair.a_weight.abs().amax() + pair.b_weight.abs().amax()).clamp(min=1.0)
    return stats


def sums(rows: Tensor, loss: Tensor, dbias: Tensor | None, dscale: Tensor | None) -> None:
    """rows (3, K) -> scalars, in float64 and in a fixed order."""
    launch(sums_kernel, (3,), rows, loss, dbias, dscale, rows.shape[1], rows.stride(0), BLOCK=4096, num_warps=16)
