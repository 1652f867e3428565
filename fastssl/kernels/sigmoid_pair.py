"""The pairwise sigmoid loss in Triton: owned rows of one side, streamed rows of the other, loss and gradients from one sweep.

    l_ab = scale <a, b> + bias,   t_ab = +1 where id_a = id_b, else -1,   u = -t l          a (NA, D), b (NB, D)
    v_ab = weight_a + weight_b where t_ab = +1 (1 without weights), else 1
    loss = sum v softplus(u),   w = -t v sigmoid(u):   da = scale w b,   dscale = sum w <a, b>,   dbias = sum w

With e = exp(-|u|): sigmoid(u) = (1 if u > 0 else e) / (1 + e) and softplus(u) = max(u, 0) + log1p(e). Where v = 1 one logarithm
serves a row of a tile: sum_b log1p(e_b) = log1p(q), 1 + q = prod_b (1 + e_b), where q <= 2^64 is carried without its 1, so that
small e keep their digits and two special functions an element are left. The lowest and highest id of each block of columns tell
which tiles hold no positive (all but the diagonal where ids are row numbers); those read neither ids nor weights.

A sweep owns x, or y where only dy is wanted; where both are, a second sweep owns y and leaves the sums out. No atomics: sums of
rows are added up in float64, in a fixed order, and so are the splits of the columns.

U = 2 N M D FLOP: loss and sums U, with one side's gradient 2U, with both 4U.
Bytes: each program reads its rows once and the NB rows of its split once, out of L2; out (NA, D) float32; N M is never stored.
Where a tile cannot hold a row (D > 256, float32 D > 128) ``sigmoid_pair_chunked`` takes over: 3U with both gradients.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import SigmoidPair

from . import sigmoid_pair_chunked as chunked
from .host.device import device_properties, on_device
from .host.launch import launch
from .sigmoid_pair_terms import Sums, add_up, float16_stats, join, load_gain, load_sum, log1p_any, log1p_unit, sigmoid_terms
from .tiles.config import TileConfig, pick_splits, tile_fits, tuned_config
from .tiles.layout import dense, dense_rows, in_precision, precision_of
from .tiles.load import load_rows, may_hold
from .tiles.merge import INF, finish, load_scale
from .tiles.plan import tile_for, tile_options
from .tiles.row_bounds import row_bounds
from .tiles.tf32 import operand


@triton.jit
def _near_tile(u, a_id, cols, NB, b_id_ptr, weight_a, b_weight_ptr, LOSS: tl.constexpr, EVEN_B: tl.constexpr):
    """w (BM, BN) and the loss of each row (BM,) of a tile that may hold positives or reach past NB."""
    at = tl.minimum(cols, NB - 1)
    positive = a_id[:, None] == tl.load(b_id_ptr + at)[None, :]
    u = tl.where(positive, -u, u)
    if not EVEN_B:
        u = tl.where(cols[None, :] < NB, u, -INF)
    e, w = sigmoid_terms(u)
    loss = weight_a
    if b_weight_ptr is not None:
        weight_b = tl.load(b_weight_ptr + at).to(tl.float32)  # (BN,)
        v = tl.where(positive, weight_a[:, None] + weight_b[None, :], 1.0)
        w *= v
        if LOSS:
            loss = tl.sum(v * (tl.maximum(u, 0.0) + log1p_unit(e)), 1)
    elif LOSS:
        loss = tl.sum(tl.maximum(u, 0.0), 1) + log1p_any(tl.reduce(e, 1, join))
    return tl.where(positive, -w, w), loss


@triton.jit
def _far_tile(u, weight_a, LOSS: tl.constexpr):
    """The same for a tile of negatives alone."""
    e, w = sigmoid_terms(u)
    loss = weight_a
    if LOSS:
        loss = tl.sum(tl.maximum(u, 0.0), 1) + log1p_any(tl.reduce(e, 1, join))
    return w, loss


@triton.jit
def _store_row(ptr, at, value, inside):
    if ptr is not None:
        tl.store(ptr + at, value, mask=inside)


@triton.jit(do_not_specialize=["NA", "NB"])
def sigmoid_pair_kernel(
    a_ptr, b_ptr, a_id_ptr, b_id_ptr, a_weight_ptr, b_weight_ptr, range_ptr, factor_ptr, term_ptr, stats_ptr,
    out_ptr, loss_ptr, sum_ptr, dot_ptr, NA, NB, D, s_a, s_b, scale, bias, split_len, FINAL: tl.constexpr,
    EVEN_B: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One split of NB, what pointers are given for: out (splits, NA, D) = gain w b, times scale / gain where FINAL, and
    (splits, NA) sums of each row, of v softplus, of w and of w <a, b>."""
    tl.static_assert(BN <= 64, "q of a tile must stay finite")
    first = tl.program_id(0) * BM
    split = tl.program_id(1)
    rows = first + tl.arange(0, BM)
    inside = rows < NA
    scale = load_scale(scale, factor_ptr)
    bias = load_sum(bias, term_ptr)
    gain = load_gain(stats_ptr)
    a = load_rows(a_ptr, first, NA, D, s_a, BM, BD, False, EVEN_D)  # (BM, BD)
    a_id = tl.load(a_id_ptr + tl.minimum(rows, NA - 1))
    lowest = tl.min(a_id, 0)
    highest = tl.max(a_id, 0)
    acc = tl.zeros((BM, BD), tl.float32)
    losses = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    dots = tl.zeros((BM,), tl.float32)
    weight_a = losses
    if a_weight_ptr is not None:
        weight_a = tl.load(a_weight_ptr + rows, mask=inside, other=0.0).to(tl.float32)  # (BM,)
    LOSS: tl.constexpr = loss_ptr is not None
    lo = split * split_len
    for start in range(lo, tl.minimum(lo + split_len, NB), BN):
        cols = start + tl.arange(0, BN)
        b = load_rows(b_ptr, start, NB, D, s_b, BN, BD, EVEN_B, EVEN_D)  # (BN, BD)
        s = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # (BM, BN)
        logits = s * scale + bias  # before the branch: Triton 3.6 cannot pipeline a product that only a branch reads
        if may_hold(range_ptr, start, lowest, highest, NB, EVEN_B, BN):
            w, loss = _near_tile(logits, a_id, cols, NB, b_id_ptr, weight_a, b_weight_ptr, LOSS, EVEN_B)
        else:
            w, loss = _far_tile(logits, weight_a, LOSS)
        losses += loss
        if sum_ptr is not None:
            total += tl.sum(w, 1)
        if dot_ptr is not None:
            dots += tl.sum(w * s, 1)
        if out_ptr is not None:
            gained = w * gain if stats_ptr is not None else w
            acc = tl.dot(operand(gained, b.dtype, PRECISION), b, acc, input_precision=PRECISION)
    at = split.to(tl.int64) * NA + rows
    _store_row(loss_ptr, at, losses, inside)
    _store_row(sum_ptr, at, total, inside)
    _store_row(dot_ptr, at, dots, inside)
    if out_ptr is not None:
        dims = tl.arange(0, BD)
        out = acc * (scale / gain) if FINAL else acc
        tl.store(out_ptr + at[:, None] * D + dims[None, :], out, mask=inside[:, None] & (dims[None, :] < D))


# (family, tile of similarity_lse) -> its own, where that one leaves 8 to 88 bytes on the stack.
_INSTEAD = {
    (100, TileConfig(128, 32, 8, 2)): TileConfig(64, 64, 8, 2),
    (80, TileConfig(32, 16, 8, 2)): TileConfig(32, 16, 4, 2),
    (90, TileConfig(128, 64, 8, 3)): TileConfig(64, 64, 4, 3, 2),  # two programs on a multiprocessor
    (90, TileConfig(128, 32, 8, 2)): TileConfig(64, 64, 8, 2),
    (90, TileConfig(32, 16, 8, 2)): TileConfig(32, 16, 8, 1),
    (100, TileConfig(32, 16, 8, 2)): TileConfig(32, 16, 4, 2),
    (0, TileConfig(32, 32, 4, 2)): TileConfig(64, 32, 8, 2),  # 16-bit, D = 256, and tf32
    (0, TileConfig(16, 16, 4, 2)): TileConfig(16, 16, 8, 2),
}


def tile_of(config: TileConfig, arch: int) -> TileConfig:
    """The tile of a sweep; ``config`` is that of the backward of ``similarity_lse``."""
    family = 80 if arch == 80 else arch // 10 * 10 if arch // 10 in (9, 10) else 0
    config = _INSTEAD.get((family, config), config)
    return replace(config, block_n=min(config.block_n, 64))


def _sweep(pair: SigmoidPair, stats: Tensor | None, out: Tensor | None, sums: Sums | None) -> None:
    """Fills out (N, D) and the sums, those that are given; the rows of x own programs, those of y are streamed."""
    x, y = pair.x, pair.y
    (n, d), m = x.shape, y.shape[0]
    precision = precision_of(x)
    device = device_properties(x.device)
    config = tuned_config("sigmoid", device.arch, x.dtype, d, precision) or tile_of(tile_for("bwd", x, precision), device.arch)
    splits, length = pick_splits(n, m, config, device.num_sms)
    new: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    rows = torch.empty((3, 0 if sums is None else triton.cdiv(splits * n, 16) * 16), **new)[:, : splits * n]
    wanted = [None if t is None else rows[k] for k, t in enumerate(sums or (None,) * 3)]
    part = torch.empty((splits, n, d), **new) if out is not None and splits > 1 else out
    ranges, _ = row_bounds(y, pair.y_id, config.block_n, False)
    launch(
        sigmoid_pair_kernel, (triton.cdiv(n, config.block_m), splits),
        x, y, pair.x_id, pair.y_id, pair.x_weight, pair.y_weight, ranges, pair.scale_factor, pair.bias_term, stats, part, *wanted,
        n, m, d, x.stride(0), y.stride(0), pair.scale, pair.bias, length, FINAL=splits == 1, EVEN_B=m % config.block_n == 0,
        **tile_options(d, config, precision),
    )  # fmt: skip
    if part is not None and part is not out:
        finish(part, stats, pair.scale, pair.scale_factor, out)
    if sums is not None:
        add_up(rows, sums)


def sigmoid_pair(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    bias: float,
    bias_term: Tensor | None,  # one element
    x_id: Tensor,  # (N,)
    y_id: Tensor,  # (M,)
    x_weight: Tensor | None,  # (N,)
    y_weight: Tensor | None,  # (M,)
    need: Sequence[bool],  # dx, dy, dscale, dbias
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss (), dx (N, D), dy (M, D), dscale () and dbias () in float32; what ``need`` does not ask for is empty."""
    new: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    if x_id.dtype != y_id.dtype:
        x_id, y_id = x_id.long(), y_id.long()
    ids = x_id.contiguous(), y_id.contiguous()
    sides = dense_rows(x), dense_rows(y)
    pair = SigmoidPair(*sides, scale, scale_factor, bias, bias_term, *ids, dense(x_weight), dense(y_weight))
    loss = torch.empty((), **new)
    dx, dy = (torch.empty(t.shape, **new) if wanted else None for t, wanted in zip((x, y), need[:2], strict=True))
    dscale, dbias = (torch.empty((), **new) if wanted else None for wanted in need[2:])
    own, other, sums = dx, dy, Sums(loss, dbias, dscale)
    if need[1] and not need[0]:  # one sweep is enough: the sums are symmetric
        pair, own, other = pair.swapped(), dy, None
    precision = precision_of(x)
    with on_device(x):
        stats = float16_stats(pair) if need[0] or need[1] else None
        if not tile_fits(x.shape[0], y.shape[0], x.shape[1], x.dtype, precision):
            with torch.autocast(x.device.type, enabled=False):
                chunked.sweep(pair, stats, own, other, sums)
        else:
            pair = in_precision(pair, precision)
            _sweep(pair, stats, own, sums)
            if other is not None:
                _sweep(pair.swapped(), stats, other, None)
    found = [torch.empty(0, **new) if t is None else t for t in (dx, dy, dscale, dbias)]
    return loss, found[0], found[1], found[2], found[3]
