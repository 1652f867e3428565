"""Bounds of the streamed rows, found before a sweep so that its tiles can skip work. One launch reads y once.

    range_t = (lowest, highest) id of the rows of tile t         norm_t = max_j ||y_j||, j in t

A tile whose range does not overlap that of the owned rows' ids excludes nothing and reads no ids. Where ids number the rows or
pairs of rows, this holds for all tiles but those on the diagonal. By Cauchy-Schwarz, |scale| max ||x_i|| max ||y_j|| bounds every
logit. Where it is at most 60 in base 2, an exponential needs no maximum, no shift and no correction of earlier sums.

The launch reads the M (D itemsize + id) bytes of y and its ids once, and writes 20 bytes for each tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..host.launch import launch
from .load import load_rows
from .merge import LOG2E

#: Exponentials are taken of logits within +-BOUND (base 2) as they are, since 2^60 summed over 2^31 columns is finite in float32.
BOUND = tl.constexpr(60.0)
# With fewer logits than this the launch costs more than it saves. The number follows from the instructions of a tile; it was not
# measured.
_LEAST_LOGITS = 1 << 25


@triton.jit(do_not_specialize=["M"])
def row_bounds_kernel(
    y_ptr, id_ptr, range_ptr, norm_ptr, M, D, s_y, s_yd,
    EVEN_M: tl.constexpr, EVEN_D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Fills those of range (M / BN, 2) int64 and norm (M / BN,) float32 that are given, from y (M, D) and ids (M,). grid
    (M / BN,)"""
    tile = tl.program_id(0)
    if range_ptr is not None:
        rows = tl.minimum(tile * BN + tl.arange(0, BN), M - 1)
        ids = tl.load(id_ptr + rows).to(tl.int64)  # (BN,)
        tl.store(range_ptr + 2 * tile, tl.min(ids, 0))
        tl.store(range_ptr + 2 * tile + 1, tl.max(ids, 0))
    if norm_ptr is not None:
        y = load_rows(y_ptr, tile * BN, M, D, s_y, BN, BD, EVEN_M, EVEN_D, s_yd).to(tl.float32)  # (BN, BD)
        tl.store(norm_ptr + tile, tl.sqrt(tl.max(tl.sum(y * y, 1), 0)))


@triton.jit
def greatest(ptr, count, BLOCK: tl.constexpr):
    """Maximum of ptr (count,), at least 0."""
    most = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(ptr + at, mask=at < count, other=0.0))
    return tl.max(most, 0)


@triton.jit
def is_small(x, norm_ptr, tiles, scale):
    """Whether every logit of the rows x (BM, BD) lies within +-BOUND, by Cauchy-Schwarz; base 2."""
    wide = x.to(tl.float32)
    longest = tl.sqrt(tl.max(tl.sum(wide * wide, 1), 0))
    return tl.abs(scale) * LOG2E * longest * greatest(norm_ptr, tiles, 1024) <= BOUND


def pays(rows: int, columns: int) -> bool:
    return rows * columns >= _LEAST_LOGITS


def variant(bounded: bool, columns: int, ids: Tensor | None, bias: Tensor | None, threshold: Tensor | None = None) -> str:
    """What to append to a kernel's name for ``pick_config``: " rank" where logits are counted, and " plain" where registers are
    left for a second program on the multiprocessor, because there are no int64 ids, no biases and no mask at the last column.
    ``bounded`` says that ranges of ids are known."""
    if threshold is not None:
        return " rank"
    narrow_ids = ids is None or (bounded and ids.element_size() == 4)
    return " plain" if bias is None and narrow_ids and columns % 128 == 0 else ""


def row_bounds(y: Tensor, ids: Tensor | None, length: int, norms: bool) -> tuple[Tensor | None, Tensor | None]:
    """range (M / length, 2) int64 where ids (M,) are given, norm (M / length,) float32 where wanted; y (M, D)."""
    m, d = y.shape
    tiles, bd = triton.cdiv(m, length), triton.next_power_of_2(max(d, 16))
    ranges = None if ids is None else torch.empty((tiles, 2), dtype=torch.int64, device=y.device)
    norm = torch.empty(tiles, dtype=torch.float32, device=y.device) if norms else None
    if ids is not None or norms:
        even = {"EVEN_M": m % length == 0, "EVEN_D": d == bd}
        launch(row_bounds_kernel, (tiles,), y, ids, ranges, norm, m, d, *y.stride(), **even, BN=length, BD=bd, num_warps=8)
    return ranges, norm
