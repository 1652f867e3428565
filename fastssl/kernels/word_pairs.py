"""Negative sampling of pairs of words in Triton. The equations stand in ``fastssl/ops/word_pairs.py``.

Forward: a program owns a pair. It reads the rows of its inputs and then each row of ``outputs`` once, which gives its product with
h and, while the row is in registers, its part of the pull. Rows wider than 4,096 are read twice, a block of columns at a time.
Backward: torch sorts the ids, and a program owns an id and BD columns. It adds up the places of the id, PLACES at a time in their
order: no atomics, same bits each time. Whole tables have a program for each of their rows, so that nothing waits for the host;
sparse gradients wait for the number of rows that occur.

The commonest word is the work of one program, however many places it has. PLACES of them cost two trips to memory, one after the
other, about 1 us: 1 / 16 us a place, while the rest of the GPU has long finished. Without subsampling "the" is 6 % of a text: of
4096 pairs that is 250 places and 16 us, which nobody sees; of 100,000 pairs 0.4 ms, several times the other rows together.
Subsampling at 1e-4 leaves some 0.5 %, and negatives are drawn by counts to the power 0.75, some 1 %. Parts of long rows, summed
by a second launch in their order, would end this; no GPU has measured yet whether it is worth the launch.
An id from the number of rows on gives NaN and reads nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new

PLACES = 16  # of an id that a program adds up at a time


@triton.jit
def _row(table_ptr, id, rows, stride, start, D, BD: tl.constexpr):
    """(BD,) of a row, in float32, zeros outside and for an id that is left out; NaN for an id that is no row."""
    dims = start + tl.arange(0, BD)
    row = tl.load(table_ptr + id * stride + dims, mask=(dims < D) & (id >= 0) & (id < rows), other=0.0).to(tl.float32)
    return tl.where(id < rows, row, float("nan"))


@triton.jit
def _mean(inputs_ptr, in_ptr, b, V, C, D, s_in, start, count, BD: tl.constexpr):
    total = tl.zeros((BD,), tl.float32)
    for c in range(0, C):
        total += _row(inputs_ptr, tl.load(in_ptr + b * C + c), V, s_in, start, D, BD)
    return total / count


@triton.jit
def _softplus(u):
    """softplus(u) and sigmoid(u)."""
    e = tl.exp(-tl.abs(u))
    return tl.where(u != u, u, tl.where(u > 0.0, u, 0.0) + tl.log(1.0 + e)), tl.where(u > 0.0, 1.0, e) / (1.0 + e)


@triton.jit(do_not_specialize=["V", "U", "C", "T"])
def word_pairs_fwd_kernel(
    inputs_ptr, outputs_ptr, in_ptr, out_ptr, loss_ptr, h_ptr, pull_ptr, slope_ptr, V, U, C, T, D, s_in, s_out, WIDE: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Pair program_id: loss (B,), h (B, D), pull (B, D), slope (B, T). grid (B,)"""
    b = tl.program_id(0).to(tl.int64)
    count = 0.0
    for c in range(0, C):
        count += tl.where(tl.load(in_ptr + b * C + c) >= 0, 1.0, 0.0)
    count = tl.maximum(count, 1.0)
    dims = tl.arange(0, BD)
    h = _mean(inputs_ptr, in_ptr, b, V, C, D, s_in, 0, count, BD)
    tl.store(h_ptr + b * D + dims, h, mask=dims < D)
    if WIDE:
        for start in range(BD, D, BD):
            more = _mean(inputs_ptr, in_ptr, b, V, C, D, s_in, start, count, BD)
            tl.store(h_ptr + b * D + start + dims, more, mask=start + dims < D)
    loss = 0.0
    pull = tl.zeros((BD,), tl.float32)
    for t in range(0, T):
        id = tl.load(out_ptr + b * T + t)
        row = _row(outputs_ptr, id, U, s_out, 0, D, BD)
        u = tl.sum(h * row, 0)
        if WIDE:
            for start in range(BD, D, BD):
                more = _mean(inputs_ptr, in_ptr, b, V, C, D, s_in, start, count, BD)
                u += tl.sum(more * _row(outputs_ptr, id, U, s_out, start, D, BD), 0)
        sign = tl.where(t == 0, -1.0, 1.0)
        term, share = _softplus(sign * u)
        slope = tl.where(id >= 0, sign * share, 0.0)
        loss += tl.where(id >= 0, term, 0.0)
        pull += slope * row
        tl.store(slope_ptr + b * T + t, slope)
    tl.store(loss_ptr + b, loss)
    tl.store(pull_ptr + b * D + dims, pull / count, mask=dims < D)


@triton.jit(do_not_specialize=["U", "C", "T"])
def word_pairs_wide_pull_kernel(outputs_ptr, in_ptr, out_ptr, slope_ptr, pull_ptr, U, C, T, D, s_out, BD: tl.constexpr):
    """Columns (1 + program_id(1)) * BD ... of the pull of pair program_id(0). grid (B, D / BD - 1)"""
    b, start = tl.program_id(0).to(tl.int64), (1 + tl.program_id(1)) * BD
    count = 0.0
    for c in range(0, C):
        count += tl.where(tl.load(in_ptr + b * C + c) >= 0, 1.0, 0.0)
    pull = tl.zeros((BD,), tl.float32)
    for t in range(0, T):
        pull += tl.load(slope_ptr + b * T + t) * _row(outputs_ptr, tl.load(out_ptr + b * T + t), U, s_out, start, D, BD)
    dims = start + tl.arange(0, BD)
    tl.store(pull_ptr + b * D + dims, pull / tl.maximum(count, 1.0), mask=dims < D)


@triton.jit(do_not_specialize=["T"])
def word_pairs_sums_kernel(
    source_ptr, factor_ptr, weight_ptr, place_ptr, begin_ptr, out_ptr, T, D, s_source, PLACES: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Columns program_id(1) * BD ... of the sum of row program_id(0). grid (R, D / BD)"""
    r = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros((BD,), tl.float32)
    last = tl.load(begin_ptr + r + 1)
    for first in range(tl.load(begin_ptr + r), last, PLACES):
        k = first + tl.arange(0, PLACES)
        place = tl.load(place_ptr + k, mask=k < last, other=0)
        b = place // T
        scale = tl.load(weight_ptr + b, mask=k < last, other=0.0)
        if factor_ptr is not None:
            scale *= tl.load(factor_ptr + place, mask=k < last, other=0.0)
        there = (k < last)[:, None] & (dims < D)[None, :]
        rows = tl.load(source_ptr + b[:, None] * s_source + dims[None, :], mask=there, other=0.0)
        total += tl.sum(scale[:, None] * rows, 0)
    tl.store(out_ptr + r * D + dims, total.to(out_ptr.dtype.element_ty), mask=dims < D)


def _dense(t: Tensor) -> Tensor:
    return t if t.stride(1) == 1 else t.contiguous()


def _columns(width: int) -> tuple[int, int]:
    """(columns, warps) of a program."""
    bd = min(triton.next_power_of_2(width), 4096)
    return bd, max(1, min(8, bd // 256))


def word_pairs_fwd(inputs: Tensor, outputs: Tensor, input_ids: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """inputs (V, D), outputs (U, D), input_ids (B, C), target_ids (B, T) -> loss (B,), h (B, D), pull (B, D), slope (B, T)."""
    inputs, outputs, given, target = _dense(inputs), _dense(outputs), input_ids.contiguous(), target_ids.contiguous()
    (pairs, words), columns, width = given.shape, target.shape[1], inputs.shape[1]
    (loss,) = new(inputs, torch.float32, (pairs,))
    h, pull = new(inputs, torch.float32, (pairs, width), (pairs, width))
    (slope,) = new(inputs, torch.float32, (pairs, columns))
    bd, warps = _columns(width)
    with on_device(inputs):
        launch(
            word_pairs_fwd_kernel, (pairs,), inputs, outputs, given, target, loss, h, pull, slope, len(inputs),
            len(outputs), words, columns, width, inputs.stride(0), outputs.stride(0), WIDE=width > bd, BD=bd, num_warps=warps,
        )  # fmt: skip
        if width > bd:
            launch(
                word_pairs_wide_pull_kernel, (pairs, triton.cdiv(width, bd) - 1), outputs, given, target, slope, pull,
                len(outputs), words, columns, width, outputs.stride(0), BD=bd, num_warps=warps,
            )  # fmt: skip
    return loss, h, pull, slope


def _rows_between(ids: Tensor, table: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids in [0, table) that occur (R,), rising; the places of ids, one id after the other; where those of each begin (R + 1,)."""
    known, place = ids.flatten().sort(stable=True)
    rows, counts = known.unique_consecutive(return_counts=True)
    begin = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    first, last = (int(n) for n in torch.searchsorted(rows, torch.tensor([0, table], device=rows.device)))
    return rows[first:last], place, begin[first : last + 1]


def _write_sums(
    source: Tensor, factor: Tensor | None, weight: Tensor, columns: int, place: Tensor, begin: Tensor, out: Tensor
) -> None:
    """Row r of out (R, D) is the sum over the places ``place[begin[r]] ... place[begin[r + 1] - 1]``."""
    source, width = _dense(source), source.shape[1]
    bd = min(triton.next_power_of_2(width), 128)
    if not len(out):
        return
    with on_device(source):
        launch(
            word_pairs_sums_kernel, (len(out), triton.cdiv(width, bd)), source, None if factor is None else factor.contiguous(),
            weight.to(torch.float32).contiguous(), place, begin, out, columns, width, source.stride(0), PLACES=PLACES, BD=bd,
            num_warps=max(1, PLACES * bd // 512),
        )  # fmt: skip


def word_pairs_rows(
    source: Tensor, factor: Tensor | None, weight: Tensor, ids: Tensor, table: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """source (B, D), factor (B, T), weight (B,), ids (B, T) -> the ids that occur, rising, (R,), and the sums of each (R, D)."""
    rows, place, begin = _rows_between(ids, table)
    (out,) = new(source, dtype, (len(rows), source.shape[1]))
    _write_sums(source, factor, weight, ids.shape[1], place, begin, out)
    return rows, out


def word_pairs_table(source: Tensor, factor: Tensor | None, weight: Tensor, ids: Tensor, table: int, dtype: torch.dtype) -> Tensor:
    """The same sums as a whole table (table, D), with zeros in the rows that do not occur."""
    known, place = ids.flatten().sort(stable=True)
    begin = torch.searchsorted(known, torch.arange(table + 1, device=known.device))
    (out,) = new(source, dtype, (table, source.shape[1]))
    _write_sums(source, factor, weight, ids.shape[1], place, begin, out)
    return out
