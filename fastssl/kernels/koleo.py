"""KoLeo in Triton but for the search of neighbours, which torch's product serves: unit rows, terms, and the gradient in one launch.

    x_i = z_i / max(|z_i|, eps),   term_e = -log(d_e + eps),   d_e = |x_i - x_j + eps|,   e = i k + t,  j = ids_e
    G_r = sum of c_e (x_r - x_j) over the own e - sum of c_e (x_i - x_r) over the e with ids_e = r + eps b_r
    b_r = sum of c_e over the own e - sum of c_e over the e with ids_e = r, in float64
    dz_r = (G_r - x_r <x_r, G_r>) / max(|z_r|, eps),   c_e = -dterm_e / ((d_e + eps) d_e)

A program of the backward owns a row. It looks for its row among the ids of its group, a block at a time, and adds up what it finds
in their order: no atomics and no sorted lists. That reads N size k ids of 8 bytes from L2, which is little beside the search and
its 2 N size D FLOP. Bytes, in elements: 2 N D, (1 + k) N D and (2 + 2 k) N D. A program holds its row up to D = 4096; the gradient
of wider rows is made twice, for <x, G> and to be written.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new

IDS = 512  # that a program looks through at a time
REGISTERS = 128  # of a thread of the backward: left alone, ptxas spills 8 bytes to fit another program


@triton.jit
def _load(ptr, places, start, read, D, BD: tl.constexpr):
    """(BR, BD) of rows that begin at ``places``, in float32, zeros outside."""
    dims = start + tl.arange(0, BD)
    mask = read[:, None] & (dims[None, :] < D)
    return tl.load(ptr + places[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["N"])
def koleo_rows_kernel(z_ptr, x_ptr, norm_ptr, N, D, s_z, eps, BR: tl.constexpr, BD: tl.constexpr):
    """Rows program_id * BR ... of z: x (N, D), norm (N,). grid (N / BR,)"""
    rows = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    inside = rows < N
    z = _load(z_ptr, rows * s_z, 0, inside, D, BD)
    square = tl.sum(z * z, 1)
    for start in range(BD, D, BD):
        more = _load(z_ptr, rows * s_z, start, inside, D, BD)
        square += tl.sum(more * more, 1)
    norm = tl.sqrt(square)
    length = tl.where(norm < eps, eps, norm)[:, None]
    dims = tl.arange(0, BD)
    to = x_ptr + rows[:, None] * D + dims[None, :]
    tl.store(to, z / length, mask=inside[:, None] & (dims[None, :] < D))
    for start in range(BD, D, BD):
        more = _load(z_ptr, rows * s_z, start, inside, D, BD)
        tl.store(to + start, more / length, mask=inside[:, None] & (start + dims[None, :] < D))
    tl.store(norm_ptr + rows, norm, mask=inside)


@triton.jit
def _squared_differences(x_ptr, own, other, start, inside, D, eps, BD: tl.constexpr):
    there = (start + tl.arange(0, BD))[None, :] < D
    d = _load(x_ptr, own, start, inside, D, BD) - _load(x_ptr, other, start, inside, D, BD) + eps
    return tl.sum(tl.where(there, d * d, 0.0), 1)


@triton.jit(do_not_specialize=["M", "E"])
def koleo_fwd_kernel(x_ptr, ids_ptr, term_ptr, distance_ptr, M, E, k, D, eps, BR: tl.constexpr, BD: tl.constexpr):
    """Entries program_id * BR ... of ids (E,), E = N k: term and distance (E,), NaN where an id names no row. grid (E / BR,)"""
    entries = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    inside = entries < E
    ids = tl.load(ids_ptr + entries, mask=inside, other=0)
    known = (ids >= 0) & (ids < M)
    own = entries // k * D
    other = ids * D
    square = _squared_differences(x_ptr, own, other, 0, inside & known, D, eps, BD)
    for start in range(BD, D, BD):
        square += _squared_differences(x_ptr, own, other, start, inside & known, D, eps, BD)
    distance = tl.where(known, tl.sqrt(square), float("nan"))
    tl.store(distance_ptr + entries, distance, mask=inside)
    tl.store(term_ptr + entries, -tl.log(distance + eps), mask=inside)


@triton.jit
def _row(x_ptr, row, start, D, BD: tl.constexpr):
    dims = start + tl.arange(0, BD)
    return tl.load(x_ptr + row.to(tl.int64) * D + dims, mask=dims < D, other=0.0)


@triton.jit
def _factor(dterm_ptr, distance_ptr, entry, eps, s_row, s_t, k):
    """c of an entry in float64, and in float32 as the largest number where it overflows: 0 times it is 0."""
    distance = tl.load(distance_ptr + entry).to(tl.float64)
    dterm = tl.load(dterm_ptr + (entry // k).to(tl.int64) * s_row + entry % k * s_t).to(tl.float64)
    factor = tl.where(distance == 0.0, 0.0, -dterm / (distance + eps) / distance)
    return factor, tl.clamp(factor, -3.4028234e38, 3.4028234e38, propagate_nan=tl.PropagateNan.ALL).to(tl.float32)


@triton.jit
def _gradient(
    dterm_ptr, x_ptr, ids_ptr, distance_ptr, r, start, M, E, k, D, size, s_row, s_t, eps, IDS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x_r and G_r, columns start ... (BD,), zeros outside."""
    own = _row(x_ptr, r, start, D, BD)
    total = tl.zeros((BD,), tl.float32)
    balance = tl.full((), 0.0, tl.float64)
    for entry in range(tl.minimum(r * k, E), tl.minimum(r * k + k, E)):
        other = tl.load(ids_ptr + entry)
        if (other >= 0) & (other < M):
            factor, narrow = _factor(dterm_ptr, distance_ptr, entry, eps, s_row, s_t, k)
            total += narrow * (own - _row(x_ptr, other, start, D, BD))
            balance += factor
    group = r // size * size * k
    end = tl.minimum(group + size * k, E)
    for first in range(group, end, IDS):
        entries = first + tl.arange(0, IDS)
        found = tl.load(ids_ptr + entries, mask=entries < end, other=-1) == r
        left = tl.where(found, entries, 2147483647)
        for _ in range(0, tl.sum(found.to(tl.int32), 0)):
            entry = tl.min(left, 0)
            left = tl.where(left == entry, 2147483647, left)
            factor, narrow = _factor(dterm_ptr, distance_ptr, entry, eps, s_row, s_t, k)
            total -= narrow * (_row(x_ptr, entry // k, start, D, BD) - own)
            balance -= factor
    total += (eps * balance).to(tl.float32)
    return own, tl.where(start + tl.arange(0, BD) < D, total, 0.0)


@triton.jit(do_not_specialize=["M", "E", "size"])
def koleo_bwd_kernel(
    dterm_ptr, x_ptr, ids_ptr, distance_ptr, norm_ptr, dz_ptr, M, E, k, D, size, s_row, s_t, eps, WIDE: tl.constexpr,
    IDS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Row program_id of dz (M, D). grid (M,)"""
    r = tl.program_id(0)
    own, total = _gradient(dterm_ptr, x_ptr, ids_ptr, distance_ptr, r, 0, M, E, k, D, size, s_row, s_t, eps, IDS, BD)
    along = 0.0
    length = 1.0
    if norm_ptr is not None:
        along = tl.sum(own * total, 0)
        if WIDE:
            for start in range(BD, D, BD):
                x, more = _gradient(dterm_ptr, x_ptr, ids_ptr, distance_ptr, r, start, M, E, k, D, size, s_row, s_t, eps, IDS, BD)
                along += tl.sum(x * more, 0)
        norm = tl.load(norm_ptr + r)
        along = tl.where(norm < eps, 0.0, along)
        length = tl.where(norm < eps, eps, norm)
    dims = tl.arange(0, BD)
    to = dz_ptr + r.to(tl.int64) * D + dims
    tl.store(to, ((total - own * along) / length).to(dz_ptr.dtype.element_ty), mask=dims < D)
    if WIDE:
        for start in range(BD, D, BD):
            x, more = _gradient(dterm_ptr, x_ptr, ids_ptr, distance_ptr, r, start, M, E, k, D, size, s_row, s_t, eps, IDS, BD)
            tl.store(to + start, ((more - x * along) / length).to(dz_ptr.dtype.element_ty), mask=start + dims < D)


@functools.lru_cache(maxsize=64)
def tile_shape(width: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: 1,024 elements of each operand, and long rows up to 4,096, 8 elements a thread."""
    bd = min(triton.next_power_of_2(width), 4096)
    br = max(1, 1024 // bd)
    return br, bd, max(4, br * bd // 256)


def koleo_rows(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """z (N, D) -> x (N, D) and norm (N,), float32."""
    z = z if z.stride(1) == 1 else z.contiguous()
    count, width = z.shape
    (x,) = new(z, torch.float32, (count, width))
    (norm,) = new(z, torch.float32, (count,))
    br, bd, warps = tile_shape(width)
    with on_device(z):
        launch(
            koleo_rows_kernel, (triton.cdiv(count, br),), z, x, norm, count, width, z.stride(0), float(eps), BR=br, BD=bd,
            num_warps=warps,
        )  # fmt: skip
    return x, norm


def koleo_fwd(x: Tensor, ids: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (M, D), ids (N, k) -> terms and distances (N, k)."""
    x, ids = x.contiguous(), ids.contiguous()
    terms, distance = new(x, torch.float32, tuple(ids.shape), tuple(ids.shape))
    br, bd, warps = tile_shape(x.shape[1])
    with on_device(x):
        launch(
            koleo_fwd_kernel, (triton.cdiv(ids.numel(), br),), x, ids, terms, distance, x.shape[0], ids.numel(), ids.shape[1],
            x.shape[1], float(eps), BR=br, BD=bd, num_warps=warps,
        )  # fmt: skip
    return terms, distance


def koleo_bwd(
    dterms: Tensor, x: Tensor, ids: Tensor, distance: Tensor, norm: Tensor | None, eps: float, size: int, dtype: torch.dtype
) -> Tensor:
    """dterms, ids and distance (N, k), x (M, D), norm (M,) or None -> (M, D)."""
    x, ids, distance, dterms = x.contiguous(), ids.contiguous(), distance.contiguous(), dterms.to(torch.float32)
    count, width = x.shape
    (out,) = new(x, dtype, (count, width))
    _, bd, warps = tile_shape(width)
    with on_device(x):
        launch(
            koleo_bwd_kernel, (count,), dterms, x, ids, distance, norm, out, count, ids.numel(), ids.shape[1], width, size,
            dterms.stride(0), dterms.stride(1), float(eps), WIDE=width > bd, IDS=IDS, BD=bd, num_warps=warps,
            maxnreg=REGISTERS,
        )  # fmt: skip
    return out
