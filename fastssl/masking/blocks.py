"""Masks of patches that hide more than single patches: units of a grid, tubes through frames, blocks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastssl.checks import check_range, check_whole
from fastssl.ops._patches import check_grid
from fastssl.ops._philox import philox, random_bits
from fastssl.ops._random import check_generator, check_place, seed_of
from fastssl.ops.mask_ids import MaskIds, draw_ids

_STREAM_SIZES, _STREAM_PLACES = 0x6A657073, 0x6A657070


def grid_mask(
    rows: int,
    grid: tuple[int, int],
    mask_ratio: float = 0.6,
    *,
    unit: int = 1,
    rounding: str = "mask_ceil",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws a random mask of a grid of patches in square units, which are removed as a whole (Xie et al. 2022, section 3.2).

    This is SimMIM's mask: units of 32 pixels over patches of 4 or 16 pixels, ceil(ratio x units) of which are removed.

    Args:
        rows: N, the number of samples.
        grid: (h, w), the number of patches down and across; multiples of ``unit``.
        mask_ratio: The share that is removed, in [0, 1].
        unit: The side of a unit, in patches.
        rounding: The rule from ratio to units, see ``num_kept``.
        noise: (N, h w / unit^2) float32, bfloat16, float16 or float64, one number for each unit in reading order. None:
            ``generator`` or ``seed`` makes it.
        generator: A ``torch.Generator`` on ``device`` for ``torch.rand``. None: torch's default generator.
        seed: 64 bits for Philox in place of noise: the same seed gives the same mask on every device; see ``mask_ids``.
        device: Where the mask lies. None: the device of ``noise``, ``seed`` or ``generator``, else the CPU.

    Returns:
        (N, h w) float32, 1 = removed, 0 = stays.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> from fastssl.functional import grid_mask
        >>> grid_mask(2, (4, 4), 0.5, unit=2, seed=0).sum(1)  # 2 of 4 units of 4 patches
        tensor([8., 8.])
    """
    op = "grid_mask"
    rows = check_whole(op, "rows", rows, 1)
    height, width = check_grid(op, grid)
    unit = check_whole(op, "unit", unit, 1)
    if height % unit or width % unit:
        raise ValueError(f"{op}: grid must be multiples of unit {unit}, got {(height, width)}")
    down, across = height // unit, width // unit
    random = {"noise": noise, "generator": generator, "seed": seed, "device": device}
    found = draw_ids(op, (rows, down * across), mask_ratio, by="rows, grid and unit", rounding=rounding, **random)
    if unit == 1:
        return found.mask
    units = found.mask.reshape(rows, down, 1, across, 1).expand(rows, down, unit, across, unit)
    return units.reshape(rows, height * width).contiguous()  # a side of one unit leaves stride 0


def tube_mask(
    rows: int,
    frames: int,
    length: int,
    mask_ratio: float = 0.9,
    *,
    rounding: str = "mask_floor",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> MaskIds:
    """Draws tubes: the same random patches of every frame are removed (Tong et al. 2022, section 3.2).

    Args:
        rows: N, the number of samples.
        frames: T, the number of frames, or of pairs of frames that share a token.
        length: L, the number of patches of a frame.
        mask_ratio: The share that is removed, in [0, 1].
        rounding: The rule from ratio to patches of a frame, see ``num_kept``; by default int(ratio x L) are removed, as in
            VideoMAE.
        noise: (N, L) float32, bfloat16, float16 or float64, one number for each tube. None: ``generator`` or ``seed`` makes it.
        generator: A ``torch.Generator`` on ``device`` for ``torch.rand``. None: torch's default generator.
        seed: 64 bits for Philox in place of noise: the same seed gives the same mask on every device; see ``mask_ids``.
        device: Where the result lies. None: the device of ``noise``, ``seed`` or ``generator``, else the CPU.

    Returns:
        A ``MaskIds`` of tokens t L + l, frame after frame, and in a frame in the order of the noise: ``ids_keep`` (N, T K),
        ``ids_mask`` (N, T (L - K)), ``ids_restore`` (N, T L) int64 into their concatenation, as ``restore_tokens`` wants it, and
        ``mask`` (N, T L) float32, 1 = removed.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> from fastssl.functional import tube_mask
        >>> first, second = tube_mask(1, 2, 8, 0.75, seed=0).mask.reshape(2, 8)
        >>> int(first.sum()), bool((first == second).all())
        (6, True)
    """
    op = "tube_mask"
    rows, frames, length = (check_whole(op, *named, 1) for named in (("rows", rows), ("frames", frames), ("length", length)))
    if frames * length >= 2**31:
        raise ValueError(f"{op}: frames x length must be below 2^31, got {frames} x {length}")
    random = {"noise": noise, "generator": generator, "seed": seed, "device": device}
    found = draw_ids(op, (rows, length), mask_ratio, by="rows and length", rounding=rounding, **random)
    kept, removed = found.ids_keep.shape[1], found.ids_mask.shape[1]
    frame = torch.arange(frames, device=found.mask.device)[None, :, None]

    def along(ids: Tensor, step: int) -> Tensor:
        return (ids[:, None, :] + frame * step).reshape(rows, -1)

    place = found.ids_restore[:, None, :]
    restore = torch.where(place < kept, place + frame * kept, place - kept + frames * kept + frame * removed)
    return MaskIds(
        along(found.ids_keep, length), along(found.ids_mask, length), restore.reshape(rows, -1), found.mask.repeat(1, frames)
    )


class ContextAndTargets(NamedTuple):
    """The blocks of I-JEPA, as ``multi_block_mask`` draws them.

    Attributes:
        context_ids: (N, K) int64, the patches of each sample's context, ascending.
        target_ids: (N, M, T) int64, the patches of each sample's M targets, each target in reading order.

    Examples:
        >>> from fastssl.functional import multi_block_mask
        >>> blocks = multi_block_mask(2, (14, 14), num_targets=4, context_keep=40, seed=0)
        >>> blocks.context_ids.shape, blocks.target_ids.shape[:2]
        (torch.Size([2, 40]), torch.Size([2, 4]))
    """

    context_ids: Tensor
    target_ids: Tensor


def multi_block_mask(
    rows: int,
    grid: tuple[int, int],
    *,
    num_targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_keep: int = 10,
    context_keep: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> ContextAndTargets:
    """Draws a context block and several target blocks of each sample, for I-JEPA (Assran et al. 2023, section 3).

    Sizes are drawn once a batch: a block has the area scale h w; scale and aspect (height / width) are uniform; sides are at most
    h - 1 and w - 1, as in I-JEPA's code. Places are drawn for each sample, all places of the grid equally likely. Targets are
    taken out of the context; where that leaves fewer than ``min_keep`` patches, the last targets stay in. All contexts are cut to
    their K first patches, K being the smallest number in the batch.

    Args:
        rows: N, the number of samples.
        grid: (h, w), the number of patches down and across, at least 2 each.
        num_targets: M, at least 1.
        target_scale: The least and the largest area of a target as a share of the grid, in (0, 1].
        target_aspect: The least and the largest height / width of targets; the context is square.
        context_scale: The least and the largest area of the context as a share of the grid, in (0, 1].
        min_keep: The number of patches that every context has at least; at most that of the smallest context block.
        context_keep: K itself; counts as ``min_keep`` where that is less. None: on a GPU the host waits once for the smallest
            number.
        generator: A ``torch.Generator`` that draws the seed. With one on a GPU the host waits once, since it needs the sizes.
        seed: 64 bits for Philox in place of a generator: the same seed gives the same blocks on every device. The host reads a
            tensor on a GPU, one wait. With a number and ``context_keep`` the host reads no tensor.
        device: Where the ids lie. None: the device of ``seed`` or ``generator``, else the CPU.

    Returns:
        A ``ContextAndTargets`` of ``context_ids`` (N, K) and ``target_ids`` (N, M, T), int64. Targets of one sample may overlap.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: A fake or meta tensor would have to be read.

    Examples:
        >>> from fastssl.functional import multi_block_mask
        >>> blocks = multi_block_mask(2, (14, 14), context_keep=40, seed=0)
        >>> blocks.context_ids.shape
        torch.Size([2, 40])
    """
    op = "multi_block_mask"
    rows = check_whole(op, "rows", rows, 1)
    height, width = check_grid(op, grid)
    if min(height, width) < 2:
        raise ValueError(f"{op}: grid must be at least 2 on each side, got {(height, width)}")
    num_targets = check_whole(op, "num_targets", num_targets, 1)
    min_keep = check_whole(op, "min_keep", min_keep, 1)
    least = min_keep
    if context_keep is not None:
        context_keep = check_whole(op, "context_keep", context_keep, 1)
        least = max(min_keep, context_keep)
    for name, limits in (("target_scale", target_scale), ("context_scale", context_scale)):
        check_range(op, name, limits)
        if limits[1] > 1:
            raise ValueError(f"{op}: {name} must be in (0, 1], got {tuple(limits)}")
    check_range(op, "target_aspect", target_aspect)
    smallest = math.prod(_sides((height, width), context_scale[0], 1.0))
    if smallest < least:
        most = f"{smallest}, the smallest context of grid and context_scale"
        raise ValueError(f"{op}: min_keep and context_keep must be at most {most}, got {least}")
    device = check_place(op, device)
    if context_keep is None and device is not None:
        _check_data(op, "context_keep", torch.empty(0, device=device))
    number, device = _host_seed(op, seed, generator, device)
    scale, aspect, context, _ = (word / 2**32 for word in philox((0, 0, _STREAM_SIZES, 0), number))
    target = _sides((height, width), _between(target_scale, scale), _between(target_aspect, aspect))
    block = _sides((height, width), _between(context_scale, context), 1.0)
    seed = torch.full((), number, dtype=torch.int64, device=device)
    bits = random_bits(rows, 2 * num_targets + 2, seed, _STREAM_PLACES)
    target_ids = _placed(bits[:, : 2 * num_targets].reshape(rows, num_targets, 2), (height, width), target)
    inside = _placed(bits[:, None, 2 * num_targets :], (height, width), block)[:, 0]
    free = _free(inside, target_ids, height * width, least)
    keep = _on_host(op, "context_keep", free.sum(1).min()) if context_keep is None else context_keep
    return ContextAndTargets((~free).byte().argsort(dim=1, stable=True)[:, :keep], target_ids)


def _host_seed(op: str, seed, generator, device: torch.device | None) -> tuple[int, torch.device]:
    """The seed as a number, and where the ids shall lie."""
    check_generator(op, generator, None)
    drawn = seed_of(op, seed, generator, device if seed is None and generator is None else None)
    return seed if isinstance(seed, int) else _on_host(op, "seed", drawn), device or drawn.device


def _check_data(op: str, name: str, value: Tensor) -> None:
    if not torch.compiler.is_compiling() and (isinstance(value, FakeTensor) or value.is_meta):
        raise NotImplementedError(f"{op}: {name} must be given as a number where tensors have no data to read")


def _on_host(op: str, name: str, value: Tensor) -> int:
    _check_data(op, name, value)
    return int(value)


def _between(pair: tuple[float, float], share: float) -> float:
    return pair[0] + share * (pair[1] - pair[0])


def _sides(grid: tuple[int, int], scale: float, aspect: float) -> tuple[int, int]:
    """(h, w) of a block of scale h w patches, at least 1 and below the grid's."""
    area = int(grid[0] * grid[1] * scale)
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    h, w = (max(1, round(min(side, most - 1))) for side, most in zip(sides, grid, strict=True))
    return h, w


def _placed(words: Tensor, grid: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """words (N, M, 2) of 32 bits -> ids (N, M, T) of a block of (h, w), T = h w patches, at a place for each."""
    (height, width), (h, w) = grid, block
    top, left = (words[:, :, 0] * (height - h + 1)) >> 32, (words[:, :, 1] * (width - w + 1)) >> 32
    down, across = torch.arange(h, device=words.device)[:, None], torch.arange(w, device=words.device)[None, :]
    return (top * width + left)[:, :, None] + (down * width + across).reshape(1, 1, h * w)


def _free(inside: Tensor, targets: Tensor, length: int, least: int) -> Tensor:
    """inside (N, C), targets (N, M, T) ids -> (N, L) bool: the context without as many of the first targets as leave ``least``."""
    rows, count, _ = targets.shape
    context = torch.zeros(rows, length, dtype=torch.bool, device=targets.device).scatter_(1, inside, True)
    hidden = torch.zeros(rows, count + 1, length, dtype=torch.bool, device=targets.device)
    hidden[:, 1:].scatter_(2, targets, True)
    left = context[:, None, :] & (hidden.cumsum(1) == 0)
    taken = (left.sum(2) >= least).sum(1) - 1  # counts only fall with each target
    return left.gather(1, taken[:, None, None].expand(-1, 1, length))[:, 0]
