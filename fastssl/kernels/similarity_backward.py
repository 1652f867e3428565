"""The backward of the masked similarity log-sum-exp: tiles that stream rows b past owned rows a.

    s2_ab = log2(e) (scale <a, b> + bias),  -inf where the ids are equal             a (NA, D), b (NB, D); base 2, so exp2 only
    out_a = scale sum_b (OWN g_a 2^(s2_ab - l_a) + STREAM g_b 2^(s2_ba - l_b)) b

One kernel computes every gradient; it owns rows a and streams rows b. dx is the OWN term with (a, b) = (x, y), dy is the STREAM
term with (a, b) = (y, x), and the symmetric gradient has both terms at once, as have the gradients of ``similarity_cross``. The
STREAM weights summed over b are dy_bias, and sum_a <a, out_a / scale> is dscale, or twice dscale when symmetric. The kernel takes
2^(s2 - l) as 2^min(s2 - t, 0) / S, with the largest logit t and the sum S of the forward. Nothing is accumulated by atomics: the
columns are split in a fixed way, and partial results are merged in a fixed order.

U = 2 N M D FLOP: a sweep takes 2U. The symmetric gradient needs one sweep, the gradients of two sides need two, 4U.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops._operands import Similarity

from .host.launch import launch
from .host.tensors import new
from .tiles.config import TileConfig
from .tiles.layout import precision_of
from .tiles.load import at_most_top, extent, load_bias, load_column, load_ids, load_rows, masked_logits
from .tiles.merge import INF, LOG2E, finish, load_scale
from .tiles.plan import plan, tile_for, tile_options
from .tiles.row_bounds import pays, row_bounds, variant
from .tiles.terms import Terms, vectors
from .tiles.tf32 import operand


@triton.jit
def _row_owner_sweep(
    acc, total, a, a_id, lowest, highest, l_a, w_a, bias_a, b_ptr, b_id_ptr, range_ptr, bias_ptr, l_b_ptr, w_b_ptr, lo, hi,
    NB, D, s_b, scale2, centre,
    OWN: tl.constexpr, STREAM: tl.constexpr, NARROW: tl.constexpr, WEIGHTS_ONLY: tl.constexpr,
    EVEN_B: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """acc (BM, BD) += sum_b w_ab b and total (BM,) += sum_b (STREAM term) over the streamed rows lo..hi. With NARROW, w_a and
    w_b_ptr hold v, and l is not read."""
    EXACT: tl.constexpr = PRECISION == "ieee" and b_ptr.dtype.element_ty == tl.float32
    for start in range(lo, hi, BN):
        cols = start + tl.arange(0, BN)
        b = load_rows(b_ptr, start, NB, D, s_b, BN, BD, EVEN_B, EVEN_D)  # (BN, BD)
        shift = centre
        if STREAM:
            w_b = load_column(w_b_ptr, cols, NB, 0.0, EVEN_B)  # (BN,)
            if not NARROW:
                l_b = load_column(l_b_ptr, cols, NB, INF, EVEN_B)  # (BN,)
        if not NARROW and OWN != STREAM:
            shift = l_a[:, None] if OWN else l_b[None, :]
        s = masked_logits(a, b, a_id, lowest, highest, b_id_ptr, range_ptr, start, NB, scale2, shift, EVEN_B, PRECISION, BN)
        if NARROW:
            w = tl.exp2(s) * (w_a[:, None] + w_b[None, :])
        else:
            if STREAM:
                from_b = s - l_b[None, :] if OWN else s
                if bias_ptr is not None:
                    from_b += bias_a[:, None]
                w = w_b[None, :] * tl.exp2(at_most_top(from_b, l_b[None, :], EXACT))
                total += tl.sum(w, 1)
            if OWN:
                from_a = s - l_a[:, None] if STREAM else s
                if bias_ptr is not None:
                    from_a += load_bias(bias_ptr, cols, NB)[None, :]
                own = w_a[:, None] * tl.exp2(at_most_top(from_a, l_a[:, None], EXACT))
                w = w + own if STREAM else own
        if not WEIGHTS_ONLY:
            acc = tl.dot(operand(w, b.dtype, PRECISION), b, acc, input_precision=PRECISION)
    return acc, total


@triton.jit(do_not_specialize=["NA", "NB"])
def similarity_bwd_kernel(
    a_ptr, b_ptr, a_id_ptr, b_id_ptr, range_ptr, bias_ptr, l_a_ptr, w_a_ptr, v_a_ptr, l_b_ptr, w_b_ptr, v_b_ptr, stats_ptr,
    factor_ptr, out_ptr, dbias_ptr, NA, NB, D, s_a, s_b, scale, split_len,
    OWN: tl.constexpr, STREAM: tl.constexpr, FINAL: tl.constexpr, NARROW: tl.constexpr, CHOSEN: tl.constexpr,
    EVEN_B: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out (NA, D) and dbias (NA,) of the owned rows. Unless FINAL, they are the sums of one split, not yet multiplied by scale and
    1 / gain. OWN reads l, w and v of the owned rows, STREAM those of the streamed rows; when symmetric, these are the same vectors.

    NARROW: without bias, OWN and STREAM share one exponential while all l lie within 64 of each other (base 2) and within FAR of 0:
    w = 2^(s - c) (v_a + v_b), v = g 2^(c - l), where c is the middle of all l. Since s <= min(l_a, l_b), nothing overflows. Only
    the device knows whether the l are so close, so CHOSEN launches come in pairs; the one that stats (3,) do not choose streams and
    stores nothing. Two loops in one kernel would share the accumulator's registers, and then ptxas would wait after each wgmma (its
    warning C7515).
    """
    first = tl.program_id(0) * BM
    split = tl.program_id(1)
    rows = first + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    inside = rows < NA
    scale = load_scale(scale, factor_ptr)
    scale2 = scale * LOG2E
    ungain = tl.load(stats_ptr + 2)
    a = load_rows(a_ptr, first, NA, D, s_a, BM, BD, False, EVEN_D)  # (BM, BD)
    a_id = load_ids(a_id_ptr, rows, NA)
    lowest, highest = extent(a_id, range_ptr)
    acc = tl.zeros((BM, BD), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    l_a = total
    w_a = total
    bias_a = total
    if OWN:
        l_a = tl.load(l_a_ptr + rows, mask=inside, other=INF)  # (BM,)
        w_a = tl.load(w_a_ptr + rows, mask=inside, other=0.0)
    if STREAM and bias_ptr is not None:
        bias_a = load_bias(bias_ptr, rows, NA)
    lo = split * split_len
    hi = tl.minimum(lo + split_len, NB)
    centre = 0.0
    if NARROW:
        centre = tl.load(stats_ptr)
        w_a = tl.load(v_a_ptr + rows, mask=inside, other=0.0)
    if CHOSEN:
        narrow = tl.load(stats_ptr + 1)
        mine = narrow > 0.0 if NARROW else narrow == 0.0
        hi = tl.where(mine, hi, lo)
        inside = rows < tl.where(mine, NA, 0)
    WEIGHTS_ONLY: tl.constexpr = out_ptr is None
    acc, total = _row_owner_sweep(
        acc, total, a, a_id, lowest, highest, l_a, w_a, bias_a, b_ptr, b_id_ptr, range_ptr, bias_ptr, l_b_ptr,
        v_b_ptr if NARROW else w_b_ptr, lo, hi, NB, D, s_b, scale2, centre, OWN, STREAM, NARROW, WEIGHTS_ONLY, EVEN_B, EVEN_D,
        PRECISION, BN, BD,
    )  # fmt: skip
    at = split.to(tl.int64) * NA + rows
    if dbias_ptr is not None:
        tl.store(dbias_ptr + at, (total * ungain if FINAL else total).to(dbias_ptr.dtype.element_ty), mask=inside)
    if out_ptr is not None:
        out = (acc * (scale * ungain) if FINAL else acc).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at[:, None] * D + dims[None, :], out, mask=inside[:, None] & (dims[None, :] < D))


def _tile_of_two(config: TileConfig, a: Tensor, precision: str) -> TileConfig:
    """The tile of the launch with two exponentials, which needs more registers than the launch with one. Both stream equally many
    columns at a time."""
    other = tile_for("bwd", a, precision)
    return other if other.block_n == config.block_n else config


def _specialised(config: TileConfig, operands: Similarity, ranges: Tensor | None) -> Callable[..., None] | None:
    """The launcher of ``similarity_hopper`` if it serves this launch with one exponential, otherwise None. Older versions of Triton
    have no Gluon, so the module is imported only where a tuned table asks for it."""
    if not config.specialised:
        return None
    from . import similarity_hopper

    return similarity_hopper.narrow_backward if similarity_hopper.takes(config, operands, ranges) else None


def row_owner(
    operands: Similarity,
    terms: Terms,
    out: Tensor | None,  # (N, D)
    dbias: Tensor | None,  # (N,)
    dots: Tensor | None,  # (N,)
    dot_scale: float = 1.0,
) -> None:
    """One sweep that owns the rows of x, streams those of y, and fills those of out, dbias and dots that are given; all three
    belong to the owned rows. For a gradient of y the operands and terms are swapped; the bias is then that of the owned rows."""
    a, b, scale, scale_factor, a_id, b_id, y_bias, _ = operands
    of_a, of_b, stats = terms
    (na, d), nb = a.shape, b.shape[0]
    bounded = pays(na, nb)
    precision = precision_of(a)
    config, splits, length, _ = plan("bwd" + variant(bounded, nb, b_id, y_bias), na, nb, a, precision)
    final = splits == 1 and dots is None
    weighted = out is not None or dots is not None
    part = out if final else new(a, torch.float32, (splits, na, d))[0] if weighted else None
    part_bias = dbias if final or dbias is None else new(a, torch.float32, (splits, na, 1))[0]
    ranges = row_bounds(b, b_id, config.block_n, False)[0] if bounded else None
    chosen = of_a is not None and of_b is not None and y_bias is None and bounded
    for narrow in (True, False) if chosen else (False,):
        if narrow and part_bias is None and (specialised := _specialised(config, operands, ranges)):
            specialised(operands, terms, ranges, part, length, final, config)
            continue
        tile = _tile_of_two(config, a, precision) if chosen and not narrow else config
        launch(
            similarity_bwd_kernel, (triton.cdiv(na, tile.block_m), splits),
            a, b, a_id, b_id, ranges, y_bias, *vectors(of_a), *vectors(of_b),
            stats, scale_factor, part, part_bias, na, nb, d, a.stride(0), b.stride(0), scale, length, OWN=of_a is not None,
            STREAM=of_b is not None, FINAL=final, NARROW=narrow, CHOSEN=chosen, EVEN_B=nb % tile.block_n == 0,
            **tile_options(d, tile, precision),
        )  # fmt: skip
    if final:
        return
    if part is not None:
        finish(part, stats, scale, scale_factor, out, a, dots, dot_scale)
    if part_bias is not None:
        finish(part_bias, stats, 1.0, None, dbias)
