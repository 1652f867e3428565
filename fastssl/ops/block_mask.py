"""The op behind block-wise masking (Bao et al. 2022, algorithm 1): random rectangles of patches until enough are removed.

    attempt a of sample n: four words r of Philox4x32-10 at the counter (a, n, 0x626C6F63, 0) under the seed
      most = min(goal - count, max_block)                       so many patches may still be added at once
      s = least + (most - least) r_0, least = min(min_block, goal)               area, uniform; r in [0, 1)
      q = aspects[r_1 T]                                        height / width, log-uniform
      h = round(sqrt(s q)), w = round(sqrt(s / q)), top = r_2 (H - h + 1), left = r_3 (W - w + 1), the last two rounded down
      where h < H, w < W and the block covers 1 .. most patches that are not removed yet: they are removed
    until count = goal, or ``attempts`` in a row have added nothing

Everything is in whole numbers, except s q, s / q and their roots, which IEEE 754 defines to the last bit, so that all backends give
the same blocks. For 75 of 14 x 14 patches a sample takes 10 to 19 attempts. One byte is written for each patch. One thread draws a
sample, on the CPU and on a GPU.
"""

import functools
import math

import torch
from torch import Tensor

from fastssl.checks import as_python, check_dense, check_flag, check_range, check_whole, readable

from ._patches import check_grid
from ._random import check_place, same_place, seed_of
from ._register import define_op

#: Entries of the table of aspect ratios.
ASPECTS = 4096
#: Longest side of a grid: the mask of a sample, a bit a patch, lies in the shared memory of a GPU.
SIDE = 512
STREAM, STREAM_TOP_UP = 0x626C6F63, 0x626C6F64

_block_mask = define_op(
    "block_mask",
    "(Tensor num_masked, Tensor seed, Tensor aspects, SymInt rows, SymInt height, SymInt width, SymInt min_block, SymInt max_block,"
    " SymInt attempts, bool exact) -> Tensor",
    lambda num_masked, seed, aspects, rows, height, width, *_: seed.new_empty((rows, height, width), dtype=torch.bool),
    "block_mask",
)


def block_mask(
    rows: int,
    grid: tuple[int, int],
    num_masked: int | Tensor,
    *,
    min_block: int | None = None,
    max_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    attempts: int = 10,
    exact: bool = False,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws block-wise masks of a grid of patches (Bao et al. 2022, algorithm 1), as BEiT, iBOT and DINOv2 do.

    Args:
        rows: N, the number of samples.
        grid: (h, w), the number of patches down and across, at most 512 each.
        num_masked: How many patches to remove of each sample, in [0, h w]: a number, or (N,) int64 on ``device``. More are never
            removed; fewer are where no further block is found. The host does not look at values on a GPU; they are cut to the
            range.
        min_block: The area of the smallest block in patches. Where a tensor ``num_masked`` asks for less of a sample, that is its
            smallest block, and the last blocks may be smaller. None: 4, or ``num_masked`` where that is less. If no such block
            fits (sides below the grid's, at most ``num_masked`` patches, these aspects), the call is refused, unless ``exact``.
        max_block: The most patches that one block may add. None: no limit.
        aspect: The least and the largest height / width of a block.
        attempts: How many tries in a row may fail before a sample is left as it is, from 1 to 2^20 - 1.
        exact: True: patches that are missing at the end are drawn one by one, each subset of the rest equally likely, so that
            every sample has ``num_masked``.
        generator: A ``torch.Generator`` on the device of the mask, which draws the seed. None: torch's default generator.
        seed: 64 bits for Philox in place of a generator: the same seed gives the same mask on every device. A one-element int64
            tensor on the device of the mask is read there, anew at each replay of a CUDA graph.
        device: Where the mask lies. None: the device of ``num_masked``, ``seed`` or ``generator``, else the CPU.

    Returns:
        (N, h, w) bool, True = removed.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> from fastssl.functional import block_mask
        >>> mask = block_mask(2, (14, 14), 75, exact=True, seed=0)
        >>> mask.shape, mask.sum((1, 2))
        (torch.Size([2, 14, 14]), tensor([75, 75]))
    """
    op = "block_mask"
    rows, num_masked, min_block = check_whole(op, "rows", rows, 1), as_python(num_masked), as_python(min_block)
    height, width = check_grid(op, grid)
    if max(height, width) > SIDE:
        raise ValueError(f"{op}: grid must be at most {SIDE} on each side, got {(height, width)}")
    patches = height * width
    device = _check_goals(op, num_masked, rows, patches, check_place(op, device))
    least = check_whole(op, "min_block", 4 if min_block is None else min_block, 1)
    attempts = check_whole(op, "attempts", attempts, 1, 2**20)
    if max_block is not None:
        max_block = check_whole(op, "max_block", max_block, 1)
        if max_block < least:
            raise ValueError(f"{op}: max_block must be at least min_block {least}, got {max_block}")
    check_range(op, "aspect", aspect)
    check_flag(op, "exact", exact)
    low, high = float(aspect[0]), float(aspect[1])
    most = patches if max_block is None else max_block
    if not exact:
        _check_fit(op, (height, width), num_masked, min_block, most, (low, high))
    if isinstance(num_masked, Tensor):
        seed = seed_of(op, seed, generator, device, ("num_masked", num_masked))
        goals = num_masked.clamp(0, patches).contiguous()
    else:
        seed = seed_of(op, seed, generator, device)
        goals = torch.full((rows,), num_masked, dtype=torch.int64, device=seed.device)
    table = _aspects(low, high, seed.device)
    return _block_mask(goals, seed, table, rows, height, width, least, most, attempts, bool(exact))


def _check_goals(op: str, num_masked, rows: int, patches: int, device: torch.device | None) -> torch.device | None:
    """The device of the mask, as far as ``device`` and ``num_masked`` fix it."""
    if not isinstance(num_masked, Tensor):
        check_whole(op, "num_masked", num_masked, 0)
        if num_masked > patches:
            raise ValueError(f"{op}: num_masked must be at most {patches}, the patches of grid, got {num_masked}")
        return device
    check_dense(op, "num_masked", num_masked)
    if num_masked.dtype != torch.int64 or tuple(num_masked.shape) != (rows,):
        got = f"{num_masked.dtype} {tuple(num_masked.shape)}"
        raise ValueError(f"{op}: num_masked must be a whole number or int64 ({rows},), got {got} (follows from rows)")
    if device is not None and not same_place(num_masked.device, device):
        raise ValueError(f"{op}: num_masked must be on {device}, got {num_masked.device}")
    if readable(num_masked) and not bool(((num_masked >= 0) & (num_masked <= patches)).all()):
        raise ValueError(f"{op}: num_masked must be in [0, {patches}], got {num_masked.tolist()} (follows from grid)")
    return num_masked.device


def _check_fit(op: str, grid: tuple[int, int], num_masked, min_block: int | None, most: int, aspect: tuple[float, float]) -> None:
    """Refuses limits under which no block could ever be placed, because the mask would be empty without a word."""
    if isinstance(num_masked, Tensor):
        least = 4 if min_block is None else min_block
    elif num_masked == 0:
        return
    else:
        most, least = min(most, num_masked), min(4, num_masked) if min_block is None else min_block
    if not _fits(grid, least, most, *aspect):
        limits = f"sides below those of grid {grid}, aspect {aspect} and at most {most} patches (num_masked, max_block)"
        raise ValueError(f"{op}: min_block must allow a block with {limits}, got {least}")


def _fits(grid: tuple[int, int], least: int, most: int, low: float, high: float) -> bool:
    """Whether some area in [least, most] and aspect in [low, high] round to sides h < H and w < W with 1 <= h w <= most.

    With a = sqrt(s q) and b = sqrt(s / q), a in h -+ 1/2: b >= max(a / high, least / a), which is least at a = sqrt(least high).
    """
    if most < least:
        return False
    for h in range(1, grid[0]):
        first, last = max(h - 0.5, math.sqrt(least) * math.sqrt(low)), min(h + 0.5, math.sqrt(most) * math.sqrt(high))
        if first > last:
            continue
        a = min(max(math.sqrt(least) * math.sqrt(high), first), last)
        w = max(1, round(min(max(a / high, least / a), grid[1])))
        if w < grid[1] and h * w <= most and min(last / low, most / first) >= 0.5:
            return True
    return False


def _aspects(low: float, high: float, device: torch.device) -> Tensor:
    traced = torch._C._len_torch_dispatch_stack() > 0  # by fake tensors: not to be kept
    return _make_aspects(low, high, device) if traced else _kept_aspects(low, high, device)


#: As torch.compiler.assume_constant_result does, which would load Triton: a compiler's exp may differ in the last bit.
vars(_aspects)["_dynamo_marked_constant"] = True


def _make_aspects(low: float, high: float, device: torch.device) -> Tensor:
    """(T,) float32: the middles of T equal parts of [log low, log high], made on the host so that all devices have one table.

    Without torch's exp, which MKL shares out among threads that a child of fork lacks.
    """
    start, width = math.log(low), math.log(high) - math.log(low)
    table = [math.exp(start + (i + 0.5) / ASPECTS * width) for i in range(ASPECTS)]
    return torch.tensor(table, dtype=torch.float64, device="cpu").float().to(device)


_kept_aspects = functools.lru_cache(64)(_make_aspects)
