"""normalize_pair in Triton: two views in, unit rows and the similarity of each pair out, one pass over the data each way.

    z = [a / |a| ; b / |b|]  (2B, D)        norm = [|a| ; |b|]  (2B,)        dot_i = <z_i, z_{B+i}>  (B,)
    G_i = dz_i + ddot_i z_partner(i)        dv_i = (G_i - z_i <z_i, G_i>) / norm_i, without the projection where norm_i = eps

|.| is clamped from below at eps. Bytes: forward reads 2BD and writes 2BD elements, backward reads 4BD and writes 2BD. FLOP:
6BD and 12BD, so both run at the speed of memory. A program holds its pairs up to D = 4096; wider rows are read twice.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new


@triton.jit
def _tile(ptr, rows, stride, start, inside, D, BD: tl.constexpr):
    """(BM, BD) of a row-major matrix in float32, zeros outside."""
    dims = start + tl.arange(0, BD)
    mask = inside[:, None] & (dims[None, :] < D)
    return tl.load(ptr + rows[:, None] * stride + dims[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, rows, start, inside, D, value, BD: tl.constexpr):
    dims = start + tl.arange(0, BD)
    tl.store(ptr + rows[:, None] * D + dims[None, :], value.to(ptr.dtype.element_ty), mask=inside[:, None] & (dims[None, :] < D))


@triton.jit
def _unit(a, b, norm_a, norm_b, dtype):
    """Both views' unit rows, rounded as they are stored, and their dots (BM,)."""
    za = (a / norm_a[:, None]).to(dtype)
    zb = (b / norm_b[:, None]).to(dtype)
    return za, zb, tl.sum(za.to(tl.float32) * zb.to(tl.float32), 1)


@triton.jit
def normalize_pair_fwd_kernel(
    a_ptr, b_ptr, z_ptr, norm_ptr, dot_ptr, B, D, s_a, s_b, eps, BM: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Pairs program_id * BM ...: z (2B, D), norm (2B,), dot (B,)."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < B
    dtype = z_ptr.dtype.element_ty
    a = _tile(a_ptr, rows, s_a, 0, inside, D, BD)  # (BM, BD)
    b = _tile(b_ptr, rows, s_b, 0, inside, D, BD)
    square_a = tl.sum(a * a, 1)
    square_b = tl.sum(b * b, 1)
    for start in range(BD, D, BD):
        more_a = _tile(a_ptr, rows, s_a, start, inside, D, BD)
        more_b = _tile(b_ptr, rows, s_b, start, inside, D, BD)
        square_a += tl.sum(more_a * more_a, 1)
        square_b += tl.sum(more_b * more_b, 1)
    norm_a = tl.maximum(tl.sqrt(square_a), eps)
    norm_b = tl.maximum(tl.sqrt(square_b), eps)
    za, zb, dot = _unit(a, b, norm_a, norm_b, dtype)
    _store(z_ptr, rows, 0, inside, D, za, BD)
    _store(z_ptr, rows + B, 0, inside, D, zb, BD)
    for start in range(BD, D, BD):
        more_a = _tile(a_ptr, rows, s_a, start, inside, D, BD)
        more_b = _tile(b_ptr, rows, s_b, start, inside, D, BD)
        za, zb, more = _unit(more_a, more_b, norm_a, norm_b, dtype)
        _store(z_ptr, rows, start, inside, D, za, BD)
        _store(z_ptr, rows + B, start, inside, D, zb, BD)
        dot += more
    tl.store(norm_ptr + rows, norm_a, mask=inside)
    tl.store(norm_ptr + B + rows, norm_b, mask=inside)
    tl.store(dot_ptr + rows, dot, mask=inside)


@triton.jit
def _pair_gradient(dz_ptr, z_ptr, rows, B, D, s_dz, s_z, ddot, start, inside, BD: tl.constexpr):
    """z and G of both views, (BM, BD) each."""
    za = _tile(z_ptr, rows, s_z, start, inside, D, BD)
    zb = _tile(z_ptr, rows + B, s_z, start, inside, D, BD)
    ga = _tile(dz_ptr, rows, s_dz, start, inside, D, BD) + ddot[:, None] * zb
    gb = _tile(dz_ptr, rows + B, s_dz, start, inside, D, BD) + ddot[:, None] * za
    return za, zb, ga, gb


@triton.jit
def normalize_pair_bwd_kernel(
    dz_ptr, ddot_ptr, z_ptr, norm_ptr, da_ptr, db_ptr, B, D, s_dz, s_ddot, s_z, eps, BM: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Pairs program_id * BM ...: da, db (B, D)."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < B
    ddot = tl.load(ddot_ptr + rows * s_ddot, mask=inside, other=0.0).to(tl.float32)  # (BM,)
    norm_a = tl.load(norm_ptr + rows, mask=inside, other=1.0)
    norm_b = tl.load(norm_ptr + B + rows, mask=inside, other=1.0)
    za, zb, ga, gb = _pair_gradient(dz_ptr, z_ptr, rows, B, D, s_dz, s_z, ddot, 0, inside, BD)
    along_a = tl.sum(za * ga, 1)
    along_b = tl.sum(zb * gb, 1)
    for start in range(BD, D, BD):
        more_za, more_zb, more_ga, more_gb = _pair_gradient(dz_ptr, z_ptr, rows, B, D, s_dz, s_z, ddot, start, inside, BD)
        along_a += tl.sum(more_za * more_ga, 1)
        along_b += tl.sum(more_zb * more_gb, 1)
    along_a = tl.where(norm_a <= eps, 0.0, along_a)
    along_b = tl.where(norm_b <= eps, 0.0, along_b)
    _store(da_ptr, rows, 0, inside, D, (ga - za * along_a[:, None]) / norm_a[:, None], BD)
    _store(db_ptr, rows, 0, inside, D, (gb - zb * along_b[:, None]) / norm_b[:, None], BD)
    for start in range(BD, D, BD):
        more_za, more_zb, more_ga, more_gb = _pair_gradient(dz_ptr, z_ptr, rows, B, D, s_dz, s_z, ddot, start, inside, BD)
        _store(da_ptr, rows, start, inside, D, (more_ga - more_za * along_a[:, None]) / norm_a[:, None], BD)
        _store(db_ptr, rows, start, inside, D, (more_gb - more_zb * along_b[:, None]) / norm_b[:, None], BD)


@functools.lru_cache(maxsize=64)
def tile_shape(width: int) -> tuple[int, int, int]:
    """(pairs, columns, warps) of a program: 512 elements of each operand, since 8 a thread spill on sm_100; long rows to 4,096."""
    bd = min(triton.next_power_of_2(width), 4096)
    bm = max(1, 512 // bd)
    return bm, bd, 4 if bm * bd <= 1024 else 8


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(1) == 1 else t.contiguous()


def normalize_pair_fwd(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """a, b (B, D) -> z (2B, D) in their dtype, norm (2B,) and dot (B,) in float32."""
    a, b = _rows(a), _rows(b)
    pairs, width = a.shape
    (z,) = new(a, a.dtype, (2 * pairs, width))
    norm, dot = new(a, torch.float32, (2 * pairs,), (pairs,))
    bm, bd, warps = tile_shape(width)
    with on_device(a):
        grid = (triton.cdiv(pairs, bm),)
        launch(
            normalize_pair_fwd_kernel, grid, a, b, z, norm, dot, pairs, width, a.stride(0), b.stride(0), eps, BM=bm, BD=bd,
            num_warps=warps,
        )  # fmt: skip
    return z, norm, dot


def normalize_pair_bwd(dz: Tensor, ddot: Tensor, z: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dz, z (2B, D), ddot (B,), norm (2B,) -> da, db (B, D)."""
    dz, z = _rows(dz), _rows(z)
    pairs, width = z.shape[0] // 2, z.shape[1]
    da, db = new(z, z.dtype, (pairs, width), (pairs, width))
    bm, bd, warps = tile_shape(width)
    with on_device(z):
        launch(
            normalize_pair_bwd_kernel, (triton.cdiv(pairs, bm),), dz, ddot, z, norm, da, db, pairs, width, dz.stride(0),
            ddot.stride(0), z.stride(0), eps, BM=bm, BD=bd, num_warps=warps,
        )  # fmt: skip
    return da, db
