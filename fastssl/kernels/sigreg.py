"""SIGReg in Triton: sums of the waves of projections, the loss from them, and the gradient. z (V, N, D), directions A (D, S).

    x = z A,    sums = sum_n (cos, sin)(t_k x_n)  (V, 2, K - 1, S),    t_k = k dt
    loss = mean_{v, s} N sum_k w_k ((C_k / N - phi_k)^2 + (S_k / N)^2)
    dx = g 2 / (V S) sum_k w_k t_k ((S_k / N) cos(t_k x) - (C_k / N - phi_k) sin(t_k x)),    dz = dx A^T

Forward: a program owns some directions of a view, streams samples past them, and keeps 16 pairs of sums of each element of its
tile in registers; rotations make the waves of one knot from those of the one before. More knots are more programs. Backward: a
program owns some samples, streams directions, makes x again, evaluates the sum over knots as a polynomial in exp(i dt x) by
Horner's rule, and multiplies it by A^T. Both are split so that every multiprocessor has work, and the parts are added in a fixed
order.

Bytes: A is read by each program that owns samples, z by each that owns directions, out of L2; sums are written and read. FLOPs:
2 V N D S and 4 V N D S in products, and for each of V N S elements about 6 for each knot in the forward and 4 in the backward.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import device_properties, on_device
from .host.launch import launch
from .host.tensors import new
from .tiles.layout import precision_of
from .tiles.tf32 import operand
from .tiles.waves import quarter_turns, wave

GROUP = 16  # knots of a program
MOST_PARTS = 16


@triton.jit
def _projected(
    z_ptr, a_ptr, rows, columns, inside, there, D, S, PRECISION: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """x (BM, BS): the rows (BM,) of z (R, D) times the columns (BS,) of A (D, S), zeros outside."""
    x = tl.zeros((BM, BS), tl.float32)
    for start in range(0, D, BD):
        dims = start + tl.arange(0, BD)
        z = tl.load(z_ptr + rows[:, None] * D + dims[None, :], mask=inside[:, None] & (dims[None, :] < D), other=0.0)
        a = tl.load(a_ptr + dims[:, None].to(tl.int64) * S + columns[None, :], mask=(dims[:, None] < D) & there[None, :], other=0.0)
        x = tl.dot(operand(z, z.dtype, PRECISION), operand(a, a.dtype, PRECISION), x, input_precision=PRECISION)
    return x


@triton.jit(do_not_specialize=["N", "length"])
def sigreg_sums_kernel(
    z_ptr, a_ptr, out_ptr, V, N, D, S, K, length, high, low, first_high, first_low, PRECISION: tl.constexpr,
    KNOTS: tl.constexpr, FIRST: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Part program_id(1) of the samples: sums of the knots FIRST + 1, ..., FIRST + KNOTS into out (parts, V, 2, K, S).

    grid (V S / BS, parts)"""
    blocks = tl.cdiv(S, BS)
    v = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * BS + tl.arange(0, BS)
    there = columns < S
    begin = tl.program_id(1) * length
    zero = tl.zeros((BM, BS), tl.float32)
    cosines = (zero,) * KNOTS
    sines = (zero,) * KNOTS
    for start in range(begin, tl.minimum(begin + length, N), BM):
        samples = start + tl.arange(0, BM)
        inside = samples < N
        x = _projected(z_ptr, a_ptr, v * N + samples, columns, inside, there, D, S, PRECISION, BM, BS, BD)
        c1, s1 = wave(x, high, low)
        c1 = tl.where(inside[:, None], c1, 0.0)  # all powers of 0 are 0
        s1 = tl.where(inside[:, None], s1, 0.0)
        c, s = c1, s1
        if FIRST > 0:
            c, s = wave(x, first_high, first_low)
            c = tl.where(inside[:, None], c, 0.0)
            s = tl.where(inside[:, None], s, 0.0)
        more_c = ()
        more_s = ()
        for k in tl.static_range(KNOTS):
            more_c = more_c + (cosines[k] + c,)  # type: ignore[assignment]
            more_s = more_s + (sines[k] + s,)  # type: ignore[assignment]
            c, s = c * c1 - s * s1, s * c1 + c * s1
        cosines = more_c
        sines = more_s
    to = out_ptr + ((tl.program_id(1) * V + v) * 2 * K + FIRST) * S + columns
    for k in tl.static_range(KNOTS):
        tl.store(to + k * S, tl.sum(cosines[k], 0), mask=there)
        tl.store(to + (K + k) * S, tl.sum(sines[k], 0), mask=there)


@triton.jit
def _deviations(sums_ptr, k, columns, there, K, S, count, step):
    """C_k / N - phi_k and S_k / N of the columns (BS,), and t_k and phi_k; sums (2, K, S)."""
    t = step * (k + 1.0)
    phi = tl.exp2(t * t * -0.72134752044)
    cosine = tl.load(sums_ptr + k * S + columns, mask=there, other=0.0) / count - phi
    sine = tl.load(sums_ptr + (K + k) * S + columns, mask=there, other=0.0) / count
    return cosine, sine, t, phi


@triton.jit
def _count(total_ptr, samples):
    """N in float32."""
    if total_ptr is None:
        return samples + 0.0
    else:
        return tl.load(total_ptr).to(tl.float32)


@triton.jit(do_not_specialize=["samples"])
def sigreg_loss_kernel(sums_ptr, total_ptr, part_ptr, S, K, samples, step, BS: tl.constexpr):
    """Sums of the statistics of BS directions of a view, divided by N: part (V S / BS,). grid the same"""
    blocks = tl.cdiv(S, BS)
    v = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * BS + tl.arange(0, BS)
    there = columns < S
    count = _count(total_ptr, samples)
    statistic = tl.zeros((BS,), tl.float32)
    for k in range(K):
        cosine, sine, _, phi = _deviations(sums_ptr + v * 2 * K * S, k, columns, there, K, S, count, step)
        weight = tl.where(k == K - 1, 1.0, 2.0) * step * phi
        statistic += weight * (cosine * cosine + sine * sine)
    tl.store(part_ptr + tl.program_id(0), tl.sum(tl.where(there, statistic, 0.0), 0))


@triton.jit(do_not_specialize=["count", "samples"])
def sigreg_total_kernel(part_ptr, total_ptr, loss_ptr, count, samples, factor, BLOCK: tl.constexpr):
    """loss () = factor N times the sum of the parts (count,). grid (1,)"""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(part_ptr + at, mask=at < count, other=0.0).to(tl.float64)
    tl.store(loss_ptr, (tl.sum(total, 0) * _count(total_ptr, samples) * factor).to(tl.float32))


@triton.jit(do_not_specialize=["N", "length", "samples"])
def sigreg_bwd_kernel(
    z_ptr, a_ptr, sums_ptr, total_ptr, grad_ptr, out_ptr, V, N, D, S, K, length, samples, step, high, low, factor,
    PRECISION: tl.constexpr, FINAL: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """dz of BM samples of a view and BO columns from part program_id(1) of the directions, into out (V, N, D) or (parts, V, N, D).

    grid (V N / BM D / BO, parts)"""
    across = tl.cdiv(D, BO)
    tiles = tl.cdiv(N, BM)
    row = tl.program_id(0) // across
    v = (row // tiles).to(tl.int64)
    samples_of = (row % tiles) * BM + tl.arange(0, BM)
    inside = samples_of < N
    rows = v * N + samples_of
    dims = (tl.program_id(0) % across) * BO + tl.arange(0, BO)
    count = _count(total_ptr, samples)
    acc = tl.zeros((BM, BO), tl.float32)
    begin = tl.program_id(1) * length
    for start in range(begin, tl.minimum(begin + length, S), BS):
        columns = start + tl.arange(0, BS)
        there = columns < S
        x = _projected(z_ptr, a_ptr, rows, columns, inside, there, D, S, PRECISION, BM, BS, BD)
        c, s = wave(x, high, low)
        re = tl.zeros((BM, BS), tl.float32)
        im = tl.zeros((BM, BS), tl.float32)
        for i in range(K):
            k = K - 1 - i
            cosine, sine, t, phi = _deviations(sums_ptr + v * 2 * K * S, k, columns, there, K, S, count, step)
            weight = tl.where(k == K - 1, 1.0, 2.0) * step * phi * t
            b = (weight * sine)[None, :]
            a = (weight * cosine)[None, :]
            re, im = re * c + (b - im * s), im * c + (re * s + a)
        dx = re * c - im * s
        at = dims[None, :] * 0 + columns[:, None]
        directions = tl.load(
            a_ptr + dims[None, :].to(tl.int64) * S + at, mask=there[:, None] & (dims[None, :] < D), other=0.0
        )  # (BS, BO)
        dtype = directions.dtype
        acc = tl.dot(operand(dx, dtype, PRECISION), operand(directions, dtype, PRECISION), acc, input_precision=PRECISION)
    mask = inside[:, None] & (dims[None, :] < D)
    if FINAL:
        acc = acc * (tl.load(grad_ptr).to(tl.float32) * factor)
        tl.store(out_ptr + rows[:, None] * D + dims[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        part = (tl.program_id(1) * V).to(tl.int64) * N
        tl.store(out_ptr + (part + rows)[:, None] * D + dims[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["count", "parts"])
def add_parts_kernel(part_ptr, grad_ptr, out_ptr, count, parts, factor, BLOCK: tl.constexpr):
    """out (count,) = the sum of part (parts, count), in order, times factor and, where given, the upstream gradient.

    grid (count / BLOCK,)"""
    to = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = to < count
    at = to
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        total += tl.load(part_ptr + at, mask=inside, other=0.0)
        at += count
    if grad_ptr is not None:
        total = total * (tl.load(grad_ptr).to(tl.float32) * factor)
    tl.store(out_ptr + to, total.to(out_ptr.dtype.element_ty), mask=inside)


@functools.lru_cache(maxsize=64)
def part_length(programs: int, items: int, block: int, num_sms: int) -> tuple[int, int]:
    """(parts, items of each) so that there are 4 programs for each multiprocessor, of at least two tiles each."""
    wanted = max(1, min(MOST_PARTS, 4 * num_sms // programs, triton.cdiv(items, 2 * block)))
    length = triton.cdiv(triton.cdiv(items, wanted), block) * block
    return triton.cdiv(items, length), length


@functools.lru_cache(maxsize=64)
def tiles_of(dtype: torch.dtype, precision: str, width: int) -> tuple[dict, dict]:
    """Constants of both sweeps. Products without matrix units keep their operands in registers, so they take less at a time."""
    wide = dtype == torch.float32
    free = wide and precision == "ieee"
    inner, columns = min(16 if free else 64, _power(width)), min(128, _power(width))
    shared = {"PRECISION": precision, "BD": inner, "num_stages": 1 if free else 2}
    return (
        {"BM": 16, "BS": 32, **shared, **_threads(8 if free else 4)},
        {"BM": 32, "BS": 16 if free else 32, "BO": columns, **shared, **_threads(8 if wide else 4)},
    )


def _power(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _threads(warps: int) -> dict:
    """Warps, and a limit of registers: where ptxas chooses one, it spills for the sake of more programs."""
    return {"num_warps": warps, "maxnreg": 168 if warps == 8 else 248}


def sigreg_sums(z: Tensor, directions: Tensor, t_max: float, knots: int) -> Tensor:
    """z (V, N, D), directions (D, S) -> sums over N of cosines and sines, (V, 2, K - 1, S) float32."""
    z, directions = z.contiguous(), directions.contiguous()
    (views, count, width), slices = z.shape, directions.shape[1]
    sizes, step = (views, 2, knots - 1, slices), t_max / (knots - 1)
    tile, _ = tiles_of(z.dtype, precision_of(z), width)
    programs = views * triton.cdiv(slices, tile["BS"])
    parts, length = part_length(programs, count, tile["BM"], device_properties(z.device).num_sms)
    (sums,) = new(z, torch.float32, sizes)
    (part,) = (sums,) if parts == 1 else new(z, torch.float32, (parts, *sizes))
    with on_device(z):
        for first in range(0, knots - 1, GROUP):
            launch(
                sigreg_sums_kernel, (programs, parts), z, directions, part, views, count, width, slices, knots - 1, length,
                *quarter_turns(step), *quarter_turns(step * (first + 1)), KNOTS=min(GROUP, knots - 1 - first), FIRST=first, **tile,
            )  # fmt: skip
        if parts > 1:
            _add_parts(part, None, sums, parts, 1.0)
    return sums


def _add_parts(part: Tensor, grad: Tensor | None, out: Tensor, parts: int, factor: float) -> None:
    grid = (triton.cdiv(out.numel(), 1024),)
    launch(add_parts_kernel, grid, part, grad, out, out.numel(), parts, factor, BLOCK=1024, num_warps=4)


def sigreg_loss(sums: Tensor, total: Tensor | None, samples: int, t_max: float) -> Tensor:
    """sums (V, 2, K - 1, S) -> the loss, a scalar."""
    sums = sums.contiguous()
    views, _, knots, slices = sums.shape
    block = 128
    programs = views * triton.cdiv(slices, block)
    part, loss = new(sums, torch.float32, (programs,), ())
    with on_device(sums):
        launch(
            sigreg_loss_kernel, (programs,), sums, total, part, slices, knots, samples, t_max / knots, BS=block, num_warps=4
        )  # fmt: skip
        launch(
            sigreg_total_kernel, (1,), part, total, loss, programs, samples, 1.0 / (views * slices), BLOCK=1024, num_warps=4
        )  # fmt: skip
    return loss


def sigreg_bwd(
    grad: Tensor, sums: Tensor, total: Tensor | None, z: Tensor, directions: Tensor, samples: int, t_max: float
) -> Tensor:
    """The gradient of z (V, N, D) for the upstream gradient () of the loss."""
    z, directions, sums = z.contiguous(), directions.contiguous(), sums.contiguous()
    (views, count, width), slices, knots = z.shape, directions.shape[1], sums.shape[2]
    step = t_max / knots
    _, tile = tiles_of(z.dtype, precision_of(z), width)
    programs = views * triton.cdiv(count, tile["BM"]) * triton.cdiv(width, tile["BO"])
    parts, length = part_length(programs, slices, tile["BS"], device_properties(z.device).num_sms)
    (dz,) = new(z, z.dtype, (views, count, width))
    (out,) = (dz,) if parts == 1 else new(z, torch.float32, (parts, views, count, width))
    factor = 2.0 / (views * slices)
    with on_device(z):
        launch(
            sigreg_bwd_kernel, (programs, parts), z, directions, sums, total, grad, out, views, count, width, slices, knots, length,
            samples, step, *quarter_turns(step), factor, FINAL=parts == 1, **tile,
        )  # fmt: skip
        if parts > 1:
            _add_parts(out, grad, dz, parts, factor)
    return dz
