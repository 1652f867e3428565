"""A step of Adam on the rows that a sparse gradient holds, in Triton. The equations stand in ``fastssl/ops/sparse_adam.py``.

A program owns BR rows of the gradient, which are rows of the table that differ from each other, so that no two programs write the
same element. Bytes, in elements: 4 R D read and 3 R D written.
"""

import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .koleo import tile_shape


@triton.jit(do_not_specialize=["R", "rate"])
def sparse_adam_kernel(
    p_ptr, m_ptr, v_ptr, row_ptr, g_ptr, R, D, stride, rate, share1, share2, eps, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Rows program_id * BR ... of values (R, D). grid (R / BR,)"""
    places = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    inside = places < R
    rows = tl.load(row_ptr + places, mask=inside, other=0)
    for start in range(0, D, BD):
        dims = start + tl.arange(0, BD)
        there = inside[:, None] & (dims < D)[None, :]
        at = rows[:, None] * stride + dims[None, :]
        g = tl.load(g_ptr + places[:, None] * D + dims[None, :], mask=there, other=0.0).to(tl.float32)
        p = tl.load(p_ptr + at, mask=there, other=0.0).to(tl.float32)
        m = tl.load(m_ptr + at, mask=there, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=there, other=0.0).to(tl.float32)
        m += share1 * (g - m)
        v += share2 * (g * g - v)
        p -= rate * m / (tl.sqrt(v) + eps)
        tl.store(p_ptr + at, p.to(p_ptr.dtype.element_ty), mask=there)
        tl.store(m_ptr + at, m.to(m_ptr.dtype.element_ty), mask=there)
        tl.store(v_ptr + at, v.to(v_ptr.dtype.element_ty), mask=there)


def sparse_adam_(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor, values: Tensor, rate: float, beta1: float, beta2: float,
    eps: float,
) -> None:  # fmt: skip
    """param, exp_avg and exp_avg_sq (V, D) of equal strides, rows (R,) that differ, values (R, D)."""
    count, width = values.shape
    br, bd, warps = tile_shape(width)
    with on_device(param):
        launch(
            sparse_adam_kernel, (triton.cdiv(count, br),), param, exp_avg, exp_avg_sq, rows.contiguous(), values.contiguous(),
            count, width, param.stride(0), float(rate), 1.0 - beta1, 1.0 - beta2, float(eps), BR=br, BD=bd, num_warps=warps,
        )  # fmt: skip
