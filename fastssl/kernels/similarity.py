"""The masked similarity log-sum-exp in Triton: forward, one-pass and backward as tiles that stream columns past owned rows.

    s2_ij  = log2(e) (scale <x_i, y_j> + y_bias_j),  -inf where x_id_i = y_id_j      x (N, D), y (M, D); base 2, so exp2 only
    lse_i  = ln(2) log2 sum_j 2^s2_ij                mean_i = sum_j 2^(s2_ij - l_i) y_j,   l_i = log2(e) lse_i
    out_a  = scale sum_b (OWN g_a 2^(s2_ab - l_a) + STREAM g_b 2^(s2_ba - l_b)) b

One backward kernel owns rows a and streams rows b: dx is OWN with (a, b) = (x, y), dy is STREAM with (a, b) = (y, x), and the
symmetric gradient is both at once. Its STREAM weights summed over b are dy_bias, and sum_a <a, out_a / scale> is dscale (twice
it when symmetric). Nothing is accumulated by atomics: columns are split in a fixed way, partials merged in a fixed order.
The forward also counts rank_i = #{j : s_ij > threshold_i}, where a threshold is given. y may lie (D, M) in memory there.
It hands the backward the largest logit t_i and the sum S_i = sum_j 2^(s2_ij - t_i) of each row; 2^(s2 - l) is 2^min(s2 - t, 0) / S.

U = 2 N M D FLOP: forward U, one-pass 2U, backward 2U for each owner (symmetric 2U in all, two-sided 4U).
Bytes: each program reads its rows once and the M columns of its split once, out of L2; N M is never stored.
Where a tile cannot hold a row (D > 256, float32 D > 128) ``similarity_wide`` takes over.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.reference import similarity as reference

from . import similarity_triangle as triangle
from . import similarity_wide as wide
from .host.device import device_properties, on_device
from .host.launch import launch
from .host.tensors import new, rows_of
from .tiles.config import TileConfig, float32_precision, pick_config, pick_splits, pick_triangle, tile_fits
from .tiles.load import (
    at_most_top,
    count_above,
    extent,
    load_bias,
    load_column,
    load_ids,
    load_rows,
    load_threshold,
    masked_dots,
    masked_logits,
    signed_unit,
)
from .tiles.merge import INF, LOG2E, Partials, Results, finish, load_scale, merge, row_terms, to_lse, under_a_top
from .tiles.row_bounds import is_small, pays, row_bounds, variant
from .tiles.tf32 import operand, operands


@triton.jit
def _online(s, top, total, acc, MEAN: tl.constexpr):
    """p = 2^(s - maximum so far), and what was summed before under another maximum brought under this one."""
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == -INF, 0.0, new)
    p = tl.exp2(s - safe[:, None])
    fix = tl.exp2(top - safe)
    if MEAN:
        acc = acc * fix[:, None]
    return p, new, total * fix + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=["N"])  # batches of any size share a compiled kernel; of M, wide loads from (D, M) depend
def similarity_fwd_kernel(
    x_ptr, y_ptr, x_id_ptr, y_id_ptr, range_ptr, norm_ptr, bias_ptr, threshold_ptr, factor_ptr,
    top_ptr, sum_ptr, lse_ptr, peak_ptr, mean_ptr, rank_ptr, N, M, D, s_x, s_y, s_yd, scale, split_len,
    EVEN_M: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Maximum and sum (N,), mean (N, D) where mean_ptr and rank (N,) where threshold_ptr is given; with lse_ptr also lse and peak
    (N,), -1: tiles do not look for it. Without, one split's partials (maximum, sum, sum of 2^. y, count). Where norm_ptr proves the
    logits small, no maximum is taken."""
    first = tl.program_id(0) * BM
    split = tl.program_id(1)
    rows = first + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    scale = load_scale(scale, factor_ptr)
    RANK: tl.constexpr = threshold_ptr is not None
    MEAN: tl.constexpr = mean_ptr is not None
    x = load_rows(x_ptr, first, N, D, s_x, BM, BD, False, EVEN_D)  # (BM, BD)
    if RANK:
        sign, unit = signed_unit(scale)
        x = (x * sign).to(x_ptr.dtype.element_ty)
    x_id = load_ids(x_id_ptr, rows, N)
    lowest, highest = extent(x_id, range_ptr)
    top = tl.full((BM,), -INF, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    rank = tl.zeros((BM,), tl.int32)
    threshold = load_threshold(threshold_ptr, rows, N)
    lo = split * split_len
    hi = tl.minimum(lo + split_len, M)
    BOUNDED: tl.constexpr = norm_ptr is not None
    small = False
    if BOUNDED:
        small = is_small(x, norm_ptr, tl.cdiv(M, BN), scale)
        top = tl.where(small, tl.zeros((BM,), tl.float32), top)
    for start in range(lo, hi, BN):
        cols = start + tl.arange(0, BN)
        y = load_rows(y_ptr, start, M, D, s_y, BN, BD, EVEN_M, EVEN_D, s_yd)  # (BN, BD)
        if RANK:  # x has the sign: thresholds are met by raw dots, in natural units
            dots = masked_dots(x, y, x_id, y_id_ptr, cols, M, EVEN_M, PRECISION)
            rank += count_above(dots, scale, threshold, bias_ptr, cols, M)
            s = dots * unit
        else:
            s = masked_logits(x, y, x_id, lowest, highest, y_id_ptr, range_ptr, start, M, scale * LOG2E, 0.0, EVEN_M, PRECISION, BN)
        if bias_ptr is not None:
            s += load_bias(bias_ptr, cols, M)[None, :]
        if BOUNDED:
            if small:
                p = tl.exp2(s)
                total += tl.sum(p, 1)
            else:
                p, top, total, acc = _online(s, top, total, acc, MEAN)
        else:
            p, top, total, acc = _online(s, top, total, acc, MEAN)
        if MEAN:
            acc = tl.dot(operand(p, y.dtype, PRECISION), y, acc, input_precision=PRECISION)
    inside = rows < N
    at = rows.to(tl.int64)
    if lse_ptr is None:  # one split's partials; kept beside the rows, their 64-bit places would spill
        skip = split.to(tl.int64) * N
        top_ptr += skip
        sum_ptr += skip
        if RANK:
            rank_ptr += skip
        if MEAN:
            mean_ptr += skip * D
    if BOUNDED and not MEAN:  # the mean is divided by a sum of its own base
        top, total = under_a_top(top, total)
    tl.store(top_ptr + at, top, mask=inside)
    tl.store(sum_ptr + at, total, mask=inside)
    if lse_ptr is not None:
        tl.store(lse_ptr + at, to_lse(top, total), mask=inside)
        tl.store(peak_ptr + at, tl.full((BM,), -1, tl.int32), mask=inside)
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if RANK:
        tl.store(rank_ptr + at, rank, mask=inside)
    if MEAN:
        tl.store(mean_ptr + at[:, None] * D + dims[None, :], acc, mask=inside[:, None] & (dims[None, :] < D))


@triton.jit
def _row_owner_sweep(
    acc, total, a, a_id, lowest, highest, l_a, w_a, bias_a, b_ptr, b_id_ptr, range_ptr, bias_ptr, l_b_ptr, w_b_ptr, lo, hi,
    NB, D, s_b, scale2, centre,
    OWN: tl.constexpr, STREAM: tl.constexpr, NARROW: tl.constexpr, WEIGHTS_ONLY: tl.constexpr,
    EVEN_B: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """acc (BM, BD) += sum_b w_ab b and total (BM,) += sum_b (STREAM term) over the streamed rows lo..hi. NARROW: w_a and
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
    """out (NA, D) and dbias (NA,) of the owned rows; unless FINAL, one split's sums before scale and 1 / gain. OWN reads l, w, v
    of the owned rows, STREAM those of the streamed ones: the same vectors when symmetric.

    NARROW: OWN and STREAM without bias, while all l lie within 64 of each other (base 2) and are not FAR, share one exponential:
    w = 2^(s - c) (v_a + v_b), v = g 2^(c - l), c in the middle; s <= min(l_a, l_b), so nothing overflows. Whether they do lie so is
    known on the device alone, so CHOSEN launches come in pairs, and the one that stats (3,) do not name streams and stores nothing.
    Both loops in one kernel would share the accumulator's registers, and then ptxas waits after each wgmma (its warning C7515).
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


def _rows(t: Tensor) -> Tensor:
    """Last dimension dense, and 128 rows within the 32-bit offsets of a tile."""
    return t if t.stride(1) == 1 and t.stride(0) < 1 << 23 else t.contiguous()


def _dense(t: Tensor | None) -> Tensor | None:
    return t if t is None else t.contiguous()


def _streamed(t: Tensor) -> Tensor:
    """Either dimension dense, so that a queue stored (D, M) is read as it lies; 256 of the other within 32-bit offsets."""
    return t if t.stride(0) == 1 and t.stride(1) < 1 << 23 else _rows(t)


def _sides(x, y, x_id, y_id, y_bias, layout=_rows):
    """The operands as the kernels take them; y None means x."""
    x, x_id = _rows(x), _dense(x_id)
    return x, x if y is None else layout(y), x_id, x_id if y is None else _dense(y_id), _dense(y_bias)


@functools.lru_cache(maxsize=256)
def tile_options(width: int, config: TileConfig, precision: str) -> dict:
    """The constants that every tile kernel takes."""
    bd = triton.next_power_of_2(max(width, 16))
    return {
        "EVEN_D": width == bd, "PRECISION": precision, "BM": config.block_m, "BN": config.block_n, "BD": bd,
        "num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": config.max_registers,
    }  # fmt: skip


def _plan(kernel: str, rows: int, columns: int, x: Tensor, precision: str) -> tuple[TileConfig, int, int, dict]:
    """config, splits, columns of each, and the constants that forward and backward share."""
    facts = device_properties(x.device)
    config = pick_config(kernel, facts.arch, x.dtype, x.shape[1], precision)
    splits, length = pick_splits(rows, columns, config, facts.num_sms)
    return config, splits, length, tile_options(x.shape[1], config, precision)


def _precision(x: Tensor) -> str:
    return float32_precision() if x.dtype == torch.float32 else "ieee"


def _forward(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold, want_mean: bool) -> Results:
    """lse (N,), state (2, N), peak (N,), mean (N, D) or None, rank (N,) or (0,)."""
    symmetric = y is None and y_bias is None and threshold is None and not want_mean
    x, y, x_id, y_id, y_bias = _sides(x, y, x_id, y_id, y_bias, _streamed)
    threshold = _dense(threshold)
    (n, d), m = x.shape, y.shape[0]
    precision = _precision(x)
    real = torch.float32
    lse, state, *means = new(x, real, (n,), (2, n), *([(n, d)] if want_mean else []))
    peak, rank = new(x, torch.int32, (n,), (0 if threshold is None else n,))
    mean = means[0] if want_mean else None
    results = Results(lse, state, peak, mean, rank)
    if not tile_fits(n, m, d, x.dtype, precision):
        with torch.autocast(x.device.type, enabled=False):
            wide.forward(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold, results)
        return results
    x, y = operands(x, y, precision)
    facts = threshold is None and pays(n, m)
    if symmetric and facts and (tile := pick_triangle(n, x_id, device_properties(x.device).arch, x.dtype, d, precision)):
        triangle.forward(x, scale, scale_factor, x_id, results, tile, tile_options(d, tile, precision))
        return results
    kernel = ("one_pass" if want_mean else "fwd") + variant(facts, m, y_id, y_bias, threshold)
    config, splits, length, options = _plan(kernel, n, m, x, precision)
    top, total, acc, count = *rows_of(state), mean, rank
    if splits > 1:
        top, total, *means = new(x, real, (splits, n), (splits, n), *([(splits, n, d)] if want_mean else []))
        acc = means[0] if want_mean else None
        count = rank.new_empty((splits, n)) if threshold is not None else None
    count = None if threshold is None else count
    final = (lse, peak) if splits == 1 else (None, None)
    bounded = y_bias is None and not (want_mean and x.dtype == torch.float16)  # 2^60 is no float16
    ranges, norm = row_bounds(y, y_id, config.block_n, bounded) if facts else (None, None)
    launch(
        similarity_fwd_kernel, (triton.cdiv(n, config.block_m), splits),
        x, y, x_id, y_id, ranges, norm, y_bias, threshold, scale_factor, top, total, *final, acc, count,
        n, m, d, x.stride(0), *y.stride(), scale, length, EVEN_M=m % config.block_n == 0, **options,
    )  # fmt: skip
    if splits > 1:
        merge(Partials(top, total, None, acc, count), results)
    return results


def similarity_fwd(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse (N,), rank, int32 (N,) or without a threshold (0,), state (2, N) and peak (N,); x (N, D), y (M, D) or None for x."""
    if x.dtype == torch.float64:
        return reference.similarity_fwd(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold)
    with on_device(x):
        lse, state, peak, _, rank = _forward(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold, False)
        return lse, rank, state, peak


def similarity_one_pass(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold) -> tuple[Tensor, Tensor, Tensor]:
    """lse (N,) and mean (N, D), float32, and rank."""
    if x.dtype == torch.float64:
        return reference.similarity_one_pass(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold)
    with on_device(x):
        lse, _, _, mean, rank = _forward(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold, True)
        return lse, mean, rank


def _vectors(terms: Tensor | None) -> tuple[Tensor | None, ...]:
    """The three rows of ``row_terms`` (3, N)."""
    return (None,) * 3 if terms is None else rows_of(terms)


def _wide(config: TileConfig, a: Tensor, precision: str) -> TileConfig:
    """The tile of a launch with two exponentials, which need more registers, beside that with one; same columns at a time."""
    other = pick_config("bwd", device_properties(a.device).arch, a.dtype, a.shape[1], precision)
    return other if other.block_n == config.block_n else config


def _specialised(config: TileConfig, a: Tensor, b: Tensor, b_id: Tensor | None, ranges: Tensor | None) -> bool:
    """Whether ``similarity_hopper`` serves a narrow launch. It is imported only then: older Tritons have no Gluon."""
    if not config.specialised:
        return False
    from . import similarity_hopper

    return similarity_hopper.takes(config, device_properties(a.device).arch, a, b, b_id, ranges)


def row_owner(own, stream, a, b, a_id, b_id, y_bias, stats, scale, scale_factor, out, dbias, dots, dot_scale=1.0) -> None:
    """One sweep that fills out (NA, D), dbias (NA,) and dots (NA,), those that are given; a (NA, D), b (NB, D); ``own`` (3, NA)
    and ``stream`` (3, NB) are ``row_terms`` or None."""
    (na, d), nb = a.shape, b.shape[0]
    facts = pays(na, nb)
    precision = _precision(a)
    config, splits, length, _ = _plan("bwd" + variant(facts, nb, b_id, y_bias), na, nb, a, precision)
    final = splits == 1 and dots is None
    weighted = out is not None or dots is not None
    part = out if final else new(a, torch.float32, (splits, na, d))[0] if weighted else None
    part_bias = dbias if final or dbias is None else new(a, torch.float32, (splits, na, 1))[0]
    ranges = row_bounds(b, b_id, config.block_n, False)[0] if facts else None
    chosen = own is not None and stream is not None and y_bias is None and facts
    for narrow in (True, False) if chosen else (False,):
        if narrow and part_bias is None and _specialised(config, a, b, b_id, ranges):
            from .similarity_hopper import narrow_backward

            narrow_backward(own, stream, a, b, a_id, b_id, ranges, stats, scale, scale_factor, part, length, final, config)
            continue
        tile = _wide(config, a, precision) if chosen and not narrow else config
        launch(
            similarity_bwd_kernel, (triton.cdiv(na, tile.block_m), splits),
            a, b, a_id, b_id, ranges, y_bias, *_vectors(own), *_vectors(stream),
            stats, scale_factor, part, part_bias, na, nb, d, a.stride(0), b.stride(0), scale, length, OWN=own is not None,
            STREAM=stream is not None, FINAL=final, NARROW=narrow, CHOSEN=chosen, EVEN_B=nb % tile.block_n == 0,
            **tile_options(d, tile, precision),
        )  # fmt: skip
    if final:
        return
    if weighted:
        finish(part, stats, scale, scale_factor, out, a, dots, dot_scale)
    if dbias is not None:
        finish(part_bias, stats, 1.0, None, dbias)


def similarity_bwd(dlse, state, peak, x, y, scale, scale_factor, x_id, y_id, y_bias, need) -> tuple[Tensor, ...]:
    """(dx, dy, dbias, dscale); a gradient that ``need`` does not ask for is an empty tensor."""
    if x.dtype == torch.float64:
        return reference.similarity_bwd(dlse, state, peak, x, y, scale, scale_factor, x_id, y_id, y_bias, need)
    symmetric = y is None
    x, y, x_id, y_id, y_bias = _sides(x, y, x_id, y_id, y_bias)
    need_x, need_y, need_bias, need_scale = need[0], need[1] and not symmetric, need[2] and y_bias is not None, need[3]
    device = x.device
    dx = new(x, x.dtype, x.shape)[0] if need_x else None
    dy = new(x, x.dtype, y.shape)[0] if need_y else None
    dbias = torch.empty(y_bias.shape, dtype=y_bias.dtype, device=device) if need_bias else None
    sweep_y = not symmetric and (need_y or need_bias)
    sweep_x = need_x or (need_scale and not sweep_y) or (symmetric and need_bias)
    with on_device(x):
        if not tile_fits(x.shape[0], y.shape[0], x.shape[1], x.dtype, _precision(x)):
            dots_of_x = need_x or not need_y
            dots = torch.empty((x if dots_of_x else y).shape[0], dtype=torch.float32, device=device) if need_scale else None
            outputs = (dx, dy, dbias, dots)
            with torch.autocast(device.type, enabled=False):
                wide.backward(dlse, state, peak, x, y, scale, scale_factor, x_id, y_id, y_bias, symmetric, outputs)
        else:
            x, y = operands(x, y, _precision(x))
            dots = torch.empty((x if sweep_x else y).shape[0], dtype=torch.float32, device=device) if need_scale else None
            terms, _, stats = row_terms(state, dlse, x.dtype)
            shared = (y_bias, stats, scale, scale_factor)
            if sweep_x:
                stream, bias, dot_scale = (terms, dbias, 0.5) if symmetric else (None, None, 1.0)
                row_owner(terms, stream, x, y, x_id, y_id, *shared, dx, bias, dots, dot_scale)
            if sweep_y:
                row_owner(None, terms, y, x, y_id, x_id, *shared, dy, dbias, None if sweep_x else dots)
    (empty,), (none,) = new(x, torch.float32, (0,)), new(x, x.dtype, (0,))
    return (
        none if dx is None else dx,
        none if dy is None else dy,
        dbias if need_bias else empty if y_bias is None else empty.to(y_bias.dtype),
        dots.sum() if need_scale else empty,
    )
