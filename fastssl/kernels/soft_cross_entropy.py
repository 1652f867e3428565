"""soft_cross_entropy in Triton: the loss of each student row and its gradient, from two readings of both sides.

    state of a row: t = max_k y_k, S = sum_k exp((y_k - t) / T), y = x + b       Q_nk = sum_m exp((y_mk - t_m) / T) / S_m
    loss_n = w_n sum_k Q_nk (log S_n - (s_nk - t_n) / Ts)       ds_nk = w_n / Ts (exp((s_nk - t_n) / Ts) / S_n sum_k Q_nk - Q_nk)

Each term of the loss is at least 0, so nothing cancels. The second reading takes the blocks in reverse, since the last ones of
the first reading are still in L2. Three ways, chosen by shape:

    one launch    row against row, as many rows as fill the device: a program reads its rows twice
    split rows    row against row, few rows: the columns are split, states are merged, and the losses of the splits are added
    crops         S rows of an image meet its T rows: states of all rows first; then a program has R of the S rows, so that a block
                  of a teacher row is read once for R student rows

Each element is loaded and stored by one program, and a store depends on every load of that element, since it needs the state of the
whole row. No tile is smaller than the threads of its program, which would let two threads read one element. So the gradient may be
written over the logits. With ``heads`` the launches are made for each segment of the columns.

Bytes, K columns of e bytes: 2 e (N + M) K read, of which L2 serves the second reading where rows are few or short; e N K written; a
bias adds 4 / R a teacher's element, out of L2. Expected on an H200 (4.3 TB/s, of L2 5.5): 4,096 x 32,000 given probabilities in
bfloat16, 0.79 GB and 0.52 GB out of L2: 0.2 ms. 4,915 x 65,536 with a potential (iBOT), 3.2 GB of which 0.3 GB out of L2: 0.7 ms.
640 and 128 rows of 65,536 (DINO): 0.29 GB, 0.07 ms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import device_properties, on_device
from .host.launch import launch
from .host.tensors import new
from .soft_rows import (
    LN2,
    LOG2E,
    Rows,
    RowTile,
    add_parts,
    dense,
    lanes,
    load_logits,
    load_tile,
    member,
    narrow,
    of_rows,
    row_states,
    row_tile,
    split_columns,
    states,
    unit_of,
)


@triton.jit
def _states(top_ptr, sum_ptr, rows, inside):
    """(t, S) of rows."""
    return tl.load(top_ptr + rows, mask=inside, other=0.0), tl.load(sum_ptr + rows, mask=inside, other=1.0)


@triton.jit
def _target(
    ptr, bias_ptr, rows, stride, inside, bias_row, bias_stride, top, share, scale, columns, end, PROBABILITIES: tl.constexpr
):  # fmt: skip
    """The probabilities of a tile of teacher rows, 0 outside."""
    if PROBABILITIES:
        return load_tile(ptr, rows, stride, inside, columns, end, 0.0)
    else:
        y, rest = load_logits(ptr, bias_ptr, rows, stride, inside, columns, end, bias_row, bias_stride)
        return tl.exp2((y - of_rows(top) + rest) * scale) * of_rows(share)


@triton.jit(do_not_specialize=["N", "S", "batch", "inner", "groups", "slot"])
def soft_cross_entropy_kernel(
    student_ptr, teacher_ptr, bias_ptr, weight_ptr, temperature_ptr, top_ptr, sum_ptr, loss_ptr, gradient_ptr,
    N, S, batch, inner, groups, stride, teacher_stride, bias_stride, gradient_stride, first, width, length, slot,
    T: tl.constexpr, PAIRED: tl.constexpr, SKIP: tl.constexpr, PROBABILITIES: tl.constexpr, UNIT: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Losses (slots, N) of these columns, from ``slot`` on, and the gradient (N, K) where it is wanted. Where there is one split,
    the program may make the states of its rows. Strides, ``first``, ``width`` and ``length`` are in units of UNIT.
    grid (groups * blocks of rows, or images * blocks of crops; splits)"""
    stride, teacher_stride, bias_stride, gradient_stride = (
        stride * UNIT,
        teacher_stride * UNIT,
        bias_stride * UNIT,
        gradient_stride * UNIT,
    )
    first, width, length = first * UNIT, width * UNIT, length * UNIT
    split = tl.program_id(1)
    if PAIRED:
        members = N // groups
        blocks = tl.cdiv(members, R)
        group = tl.program_id(0) // blocks
        i = tl.program_id(0) % blocks * R + tl.arange(0, R)
        inside = i < members
        rows = member(i, group, inner, groups)
    else:
        blocks = tl.cdiv(S, R)
        image = (tl.program_id(0) // blocks).to(tl.int64)
        i = tl.program_id(0) % blocks * R + tl.arange(0, R)  # crops
        inside = i < S
        rows = i * batch + image
    temperature = tl.load(temperature_ptr).to(tl.float32)
    scale = LOG2E / temperature
    teacher_scale = LOG2E / tl.load(temperature_ptr + 1).to(tl.float32)
    active = inside
    weight = tl.full((R,), 1.0, tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + rows, mask=inside, other=0.0)
        active = inside & (weight != 0.0)
    lo = first + split * length
    hi = tl.minimum(lo + length, first + width)
    read = tl.where(tl.max(active.to(tl.int32), 0) == 1, hi, lo)  # rows of weight 0 are not read
    if top_ptr is None:
        top, total = row_states(student_ptr, None, rows, stride, active, 0, 0, scale, lo, read, False, R, L, V)
        teacher_top, mass = row_states(
            teacher_ptr, bias_ptr, rows, teacher_stride, active, group, bias_stride, teacher_scale, lo, read, PROBABILITIES, R, L, V
        )  # fmt: skip
    else:
        top, total = _states(top_ptr, sum_ptr, rows, active)
        if PAIRED:
            teacher_top, mass = _states(top_ptr, sum_ptr, N + rows, active)
    if PAIRED:
        teacher_share = 1.0 / mass
        if not PROBABILITIES:
            mass = tl.full((R,), 1.0, tl.float32)
    else:
        mass = tl.zeros((R,), tl.float32)
        for t in range(T):
            other = N + tl.cast(t, tl.int64) * batch + image + tl.zeros((1,), tl.int64)
            one = tl.load(sum_ptr + other) if PROBABILITIES else tl.full((1,), 1.0, tl.float32)
            mass += tl.where(i == t, 0.0, one) if SKIP else one
    share = 1.0 / total
    log_sum = of_rows(tl.log2(total))
    gain = weight / temperature
    losses = tl.zeros((L, R), tl.float32)
    blocks = tl.cdiv(hi - lo, L * V)
    for k in range(0, blocks):
        columns = lanes(lo + (blocks - 1 - k) * (L * V), L, V)
        s = load_tile(student_ptr, rows, stride, active, columns, hi, 0.0)
        z = (s - of_rows(top)) * scale
        if PAIRED:
            q = _target(
                teacher_ptr, bias_ptr, rows, teacher_stride, active, group, bias_stride, teacher_top, teacher_share, teacher_scale,
                columns, hi, PROBABILITIES,
            )  # fmt: skip
        else:
            q = tl.zeros((L, R, V), tl.float32)
            for t in range(T):
                other = tl.cast(t, tl.int64) * batch + image + tl.zeros((1,), tl.int64)
                teacher_top, teacher_mass = _states(top_ptr, sum_ptr, N + other, other >= 0)
                one = _target(
                    teacher_ptr, bias_ptr, other, teacher_stride, other >= 0, other // inner % groups, bias_stride, teacher_top,
                    1.0 / teacher_mass, teacher_scale, columns, hi, PROBABILITIES,
                )  # fmt: skip
                q += tl.where(of_rows(i == t), 0.0, one) if SKIP else one
        losses += tl.sum(q * (log_sum - z), 2)
        if gradient_ptr is not None:
            d = (tl.exp2(z) * of_rows(share * mass) - q) * of_rows(gain)
            d = tl.where(of_rows(active), d, 0.0).to(gradient_ptr.dtype.element_ty)
            at = of_rows(rows) * gradient_stride + columns
            tl.store(gradient_ptr + at, d, mask=of_rows(inside) & (columns < hi))
    loss = tl.where(active, tl.sum(losses, 0) * weight * LN2, 0.0)
    tl.store(loss_ptr + (slot + split).to(tl.int64) * N + rows, loss, mask=inside)


@triton.jit(do_not_specialize=["N"])
def soft_cross_entropy_scale_kernel(
    gradient_ptr, upstream_ptr, N, s_upstream, stride, width, length, UNIT: tl.constexpr, L: tl.constexpr, V: tl.constexpr
):  # fmt: skip
    """The rows of gradient (N, K) times upstream, in place. grid (N, splits of the columns)"""
    stride, width, length = stride * UNIT, width * UNIT, length * UNIT
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(upstream_ptr + row * s_upstream)
    lo = tl.program_id(1) * length
    hi = tl.where(factor == 1.0, lo, tl.minimum(lo + length, width))
    for start in range(lo, hi, L * V):
        columns = lanes(start, L, V)
        ptr = gradient_ptr + row * stride + columns
        d = tl.load(ptr, mask=columns < hi, other=0.0).to(tl.float32)
        tl.store(ptr, (d * factor).to(gradient_ptr.dtype.element_ty), mask=columns < hi)


class Call(NamedTuple):
    """The arguments of the ops, in the order of their schemas."""

    student: Tensor  # (N, K), N = S batch
    teacher: Tensor  # (M, K), M = T batch
    bias: Tensor | None  # (G, K)
    weight: Tensor | None  # (N,)
    temperatures: Tensor  # (2,): the student's and the teacher's
    heads: Sequence[int]
    batch: int
    inner: int
    skip_diagonal: bool
    probabilities: bool

    @property
    def paired(self) -> bool:
        return self.batch == self.student.shape[0] == self.teacher.shape[0] and not self.skip_diagonal

    @property
    def groups(self) -> int:
        return 1 if self.bias is None else self.bias.shape[0]


class Plan(NamedTuple):
    """How the columns of one head are served."""

    tile: RowTile
    programs: int
    splits: int
    length: int  # columns of a split
    one_launch: bool


def _blocks(call: Call, rows: int) -> int:
    if call.paired:
        return triton.cdiv(call.batch // call.groups, rows) * call.groups
    return triton.cdiv(call.student.shape[0] // call.batch, rows) * call.batch


def _fills(blocks: int, num_sms: int) -> bool:
    """Whether so many programs are enough for the device, so that no row is split."""
    return blocks >= 2 * num_sms


def plan_of(call: Call, width: int) -> Plan:
    """One launch where rows fill the device or a row is short. Rows that share a bias, and crops that share teacher rows, read them
    once for each tile."""
    num_sms = device_properties(call.student.device).num_sms
    of_16_bits = narrow(call.student, call.teacher) and call.bias is None
    crops = call.student.shape[0] // call.batch
    if call.paired:
        members = call.batch // call.groups
        many = (1,) if call.bias is None else (4, 2, 1) if members > 2 else (members, 1)
        full = [rows for rows in many if _fills(_blocks(call, rows), num_sms)]
        rows = full[0] if full else many[0]
    else:
        full, rows = [], 4 if crops % 4 in (0, 3) else min(crops, 2)
    tile = row_tile(rows, width, of_16_bits, 16, 16 if rows == 1 else 8)  # one long row for many threads: more of it stays in L2
    blocks = _blocks(call, rows)
    if call.paired and (full or width <= 4 * tile.block):
        return Plan(tile, blocks, 1, triton.cdiv(width, tile.block) * tile.block, True)
    return Plan(tile, blocks, *split_columns(blocks, width, tile.block, num_sms), False)


def _head(call: Call, plan: Plan, first: int, width: int, losses: Tensor, slot: int, gradient: Tensor | None) -> None:
    """The losses (slots, N) of one head, from ``slot`` on, and its columns of the gradient."""
    student, teacher, bias, weight, temperatures = call[:5]
    top = total = None
    if not plan.one_launch:
        sides = Rows(student, None, weight, 1, False), Rows(teacher, bias, None, call.inner, True, call.probabilities)
        top, total = states(sides, temperatures, first, width)
    strides = (
        student.stride(0),
        teacher.stride(0),
        0 if bias is None else bias.stride(0),
        0 if gradient is None else gradient.stride(0),
    )
    unit = unit_of(plan.tile.columns, *strides, first, width, plan.length)
    launch(
        soft_cross_entropy_kernel, (plan.programs, plan.splits), student, teacher, bias, weight, temperatures, top, total, losses,
        gradient, student.shape[0], student.shape[0] // call.batch, call.batch, call.inner, call.groups,
        *(size // unit for size in (*strides, first, width, plan.length)), slot, T=teacher.shape[0] // call.batch,
        PAIRED=call.paired, SKIP=call.skip_diagonal, PROBABILITIES=call.probabilities, UNIT=unit, **plan.tile.constants,
    )  # fmt: skip


def _run(call: Call, gradient: Tensor | None) -> Tensor:
    """The losses (N,); fills the gradient."""
    count = call.student.shape[0]
    (loss,) = new(call.student, torch.float32, (count,))
    if count == 0:
        return loss
    plans = [plan_of(call, width) for width in call.heads]
    slots = sum(plan.splits for plan in plans)
    losses = loss if slots == 1 else new(call.student, torch.float32, (slots, count))[0]
    first = slot = 0
    with on_device(call.student):
        for width, plan in zip(call.heads, plans, strict=True):
            _head(call, plan, first, width, losses, slot, gradient)
            first, slot = first + width, slot + plan.splits
        if slots > 1:
            add_parts(losses, loss)
    return loss


def _call(student: Tensor, teacher: Tensor, bias: Tensor | None, weight: Tensor | None, *rest) -> Call:
    bias, weight = (t if t is None else t.contiguous() for t in (bias, weight))
    return Call(student, dense(teacher), bias, weight, *rest)


def soft_cross_entropy_fwd(student: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """Of the arguments of a ``Call`` and whether the gradient is wanted: loss (N,) in float32, and dstudent (N, K) or (0,)."""
    *rest, gradient = arguments
    student = dense(student)
    (dstudent,) = new(student, student.dtype, tuple(student.shape) if gradient else (0,))
    return _run(_call(student, *rest), dstudent if gradient else None), dstudent


def soft_cross_entropy_in_place(student: Tensor, *arguments) -> Tensor:
    """Loss (N,); the gradient is written over the student's logits."""
    rows = dense(student)
    loss = _run(_call(rows, *arguments), rows)
    if rows is not student:
        student.copy_(rows)
    return loss


def soft_cross_entropy_scale(dstudent: Tensor, upstream: Tensor) -> None:
    """The rows of dstudent (N, K) times upstream, () or (N,), in place; rows of factor 1 are not read."""
    count, width = dstudent.shape
    if count == 0:
        return
    rows, upstream = dense(dstudent), upstream.to(torch.float32)
    tile = row_tile(1, width, narrow(dstudent), 32)
    splits, length = split_columns(count, width, tile.block, device_properties(dstudent.device).num_sms)
    unit = unit_of(tile.columns, rows.stride(0), width, length)
    with on_device(dstudent):
        launch(
            soft_cross_entropy_scale_kernel, (count, splits), rows, upstream, count, upstream.stride(0) if upstream.dim() else 0,
            rows.stride(0) // unit, width // unit, length // unit, UNIT=unit, L=tile.lanes, V=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    if rows is not dstudent:
        dstudent.copy_(rows)
