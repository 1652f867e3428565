"""Contract of the op behind block-wise masking: rectangles of patches at random until enough are removed (Bao et al. 2022,
algorithm 1).

    attempt a of sample n: four words r of Philox4x32-10 at the counter (a, n, 0x626C6F63, 0) under the seed
      most = min(goal - count, max_block)                       so many patches may still be added at once
      s = min_block + (most - min_block) r_0                    area, uniform;     r in [0, 1)
      q = aspects[r_1 T]                                        height / width, log-uniform
      h = round(sqrt(s q)), w = round(sqrt(s / q)), top = r_2 (H - h + 1), left = r_3 (W - w + 1), the last two rounded down
      where h < H, w < W and the block covers 1 .. most patches that are not removed yet: they are removed
    until count = goal, or ``attempts`` in a row have added nothing

Everything is in whole numbers but s q, s / q and their roots, which IEEE 754 defines to the last bit: all backends give the same
blocks. 10 to 19 attempts a sample for 75 of 14 x 14 patches. Bytes: 1 written for each patch. One thread draws a sample, on the CPU
and on a GPU.
"""

import functools
import math

import torch
from torch import Tensor

from ._checks import check_range, check_whole
from ._patches import check_grid
from ._random import seed_of
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
    min_block: int = 4,
    max_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    attempts: int = 10,
    exact: bool = False,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Block-wise masks of a grid of patches (Bao et al. 2022, algorithm 1), as BEiT, iBOT and DINOv2 draw them.

    Args:
        rows: N, samples.
        grid: (h, w), patches; at most 512 each.
        num_masked: how many patches to remove of each sample, in [0, h w]; a number, or (N,) int64 on ``device``. More are never
            removed, fewer where no further block is found. Values on a GPU are not looked at by the host, but cut to that range.
        min_block: area of the smallest block, in patches; the last blocks of a sample may be smaller.
        max_block: most patches that one block may add; None: no limit.
        aspect: least and largest height / width.
        attempts: tries in a row that may fail before a sample is left as it is.
        exact: True: patches that are missing at the end are drawn one by one, each subset of the rest equally likely, so that every
            sample has ``num_masked``.
        generator, seed: as in ``mask_tokens``.
        device: where the mask lies; by default that of ``num_masked``, ``seed`` or ``generator``, else the CPU.

    Returns:
        (N, h, w) bool, True = removed.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    op = "block_mask"
    check_whole(op, "rows", rows, 1)
    height, width = check_grid(op, grid)
    if max(height, width) > SIDE:
        raise ValueError(f"{op}: grid must be at most {SIDE} on each side, got {(height, width)}")
    check_whole(op, "min_block", min_block, 1)
    check_whole(op, "attempts", attempts, 1)
    if max_block is not None:
        check_whole(op, "max_block", max_block, min_block)
    check_range(op, "aspect", aspect)
    if device is None and isinstance(num_masked, Tensor):
        device = num_masked.device
    if not isinstance(exact, bool):
        raise TypeError(f"{op}: exact must be True or False, got {type(exact).__name__}")
    seed = seed_of(op, seed, generator, device)
    goal = _goals(op, num_masked, rows, height * width, seed.device)
    table = _aspects(float(aspect[0]), float(aspect[1]), seed.device)
    most = height * width if max_block is None else max_block
    return _block_mask(goal, seed, table, rows, height, width, min_block, most, attempts, exact)


def _goals(op: str, num_masked, rows: int, patches: int, device: torch.device) -> Tensor:
    """(N,) int64 in [0, patches]."""
    if not isinstance(num_masked, Tensor):
        check_whole(op, "num_masked", num_masked, 0, patches + 1)
        return torch.full((rows,), num_masked, dtype=torch.int64, device=device)
    if num_masked.dtype != torch.int64 or tuple(num_masked.shape) != (rows,):
        got = f"{num_masked.dtype} {tuple(num_masked.shape)}"
        raise ValueError(f"{op}: num_masked must be a whole number or int64 ({rows},), got {got}")
    if num_masked.device != device:
        raise ValueError(f"{op}: num_masked must be on {device}, got {num_masked.device}")
    if device.type == "cpu" and not torch.compiler.is_compiling() and not bool(((num_masked >= 0) & (num_masked <= patches)).all()):
        raise ValueError(f"{op}: num_masked must be in [0, {patches}], got {num_masked.tolist()}")
    return num_masked.clamp(0, patches).contiguous()


def _aspects(low: float, high: float, device: torch.device) -> Tensor:
    traced = torch._C._len_torch_dispatch_stack() > 0  # by fake tensors: not to be kept
    return _make_aspects(low, high, device) if traced else _kept_aspects(low, high, device)


#: As by torch.compiler.assume_constant_result, which loads Triton: a compiler's exp may differ in the last bit.
_aspects._dynamo_marked_constant = True


def _make_aspects(low: float, high: float, device: torch.device) -> Tensor:
    """(T,) float32: the middles of T equal parts of [log low, log high], made on the host so that all devices have one table."""
    middles = (torch.arange(ASPECTS, dtype=torch.float64, device="cpu") + 0.5) / ASPECTS
    return (math.log(low) + middles * (math.log(high) - math.log(low))).exp().float().to(device)


_kept_aspects = functools.lru_cache(64)(_make_aspects)
