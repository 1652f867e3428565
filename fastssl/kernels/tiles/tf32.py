"""float32 operands of products in TF32, rounded to nearest. The matrix units only drop the low 13 bits of an operand, which makes
the size of every logit smaller, by 7e-4 of itself on average. The errors of rounded operands have both signs.

    r(v) = the float32 of 10 mantissa bits nearest to v, ties away from zero        cvt.rna.tf32 of PTX

Operands that come from memory are rounded once, in a pass of their own, which moves 8 bytes for each element. Weights that are made
in registers are rounded there, by two integer operations and a comparison for NaN each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..host.launch import launch


@triton.jit
def nearest(v):
    """float32 rounded to TF32. A NaN stays what it is, since its bits might overflow; a number that is nearer to 2^128 becomes
    infinite."""
    bits = v.to(tl.int32, bitcast=True)
    return tl.where(v == v, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), v)


@triton.jit
def operand(w, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Weights w, float32, as an operand of a product with values of ``dtype``."""
    if PRECISION == "tf32" and dtype == tl.float32:
        w = nearest(w)
    return w.to(dtype)


@triton.jit(do_not_specialize=["count"])
def round_tf32_kernel(t_ptr, out_ptr, count, D, s_t, BLOCK: tl.constexpr):
    """Rounds t (R, D) of row stride s_t into a dense out (R, D) of count = R D elements. grid (count / BLOCK,)"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(t_ptr + at // D * s_t + at % D, mask=inside, other=0.0)
    tl.store(out_ptr + at, nearest(value), mask=inside)


def rounded(t: Tensor) -> Tensor:
    """A rounded copy of t (R, D), float32. One dimension of t is dense, and it is dense in the copy."""
    if t.stride(1) != 1:
        return rounded(t.t()).t()
    out = torch.empty(t.shape, dtype=torch.float32, device=t.device)
    launch(round_tf32_kernel, (triton.cdiv(t.numel(), 1024),), t, out, t.numel(), t.shape[1], t.stride(0), BLOCK=1024)
    return out


def rounded_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded copies of x and y; where y is x, both are the same copy."""
    small = rounded(x)
    return small, small if y is x else rounded(y)
