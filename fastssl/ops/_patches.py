"""Checks of images, patches, tokens and their ids. They read no tensor data on a GPU.

Messages name the op, the argument, what was expected and what was given; ``by`` are the arguments that a demand follows from,
where these are not the refused argument alone.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastssl.checks import as_python, check_dense, check_float_dtype, check_whole, is_whole, readable


def check_floats(op: str, name: str, value, letters: str, may_be_empty: int | None = None) -> None:
    """Refuses what is no float tensor with as many dimensions as ``letters`` ("N, L, D"); only ``may_be_empty`` may have size 0."""
    check_dense(op, name, value, f"a tensor ({letters})")
    check_float_dtype(op, name, value)
    empty = [side for side, size in enumerate(value.shape) if size == 0 and side != may_be_empty]
    if value.dim() != letters.count(",") + 1 or empty:
        raise ValueError(f"{op}: {name} must have shape ({letters}), no side of it 0, got {tuple(value.shape)}")


def check_device(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{op}: {like_name} and {name} must be on the same device, got {like.device} and {value.device}")
    fakes = [t for t in (value, like) if isinstance(t, FakeTensor)]
    if len(fakes) == 1 and not fakes[0].fake_mode.allow_non_fake_inputs:
        raise ValueError(f"{op}: {like_name} and {name} must both be fake tensors or both have data")


def check_ids(
    op: str, name: str, ids, rows: int, letters: str, below: int, like_name: str, like: Tensor, by: str | None = None
) -> None:
    """Refuses ids that are not int64 (rows, any) in [0, below) on the device of ``like``; their values are read only on the CPU."""
    check_dense(op, name, ids, f"an int64 tensor ({letters})")
    if ids.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {ids.dtype}")
    if ids.dim() != 2 or ids.shape[0] != rows:
        raise ValueError(f"{op}: {name} must have shape ({letters}) with {rows} rows as {like_name}, got {tuple(ids.shape)}")
    check_device(op, name, ids, like_name, like)
    if not readable(ids) or ids.numel() == 0:
        return
    low, high = (int(t) for t in ids.aminmax())
    if low < 0 or high >= below:
        raise ValueError(f"{op}: {name} must be in [0, {below}), got {low if low < 0 else high} (follows from {by or like_name})")


def check_part(op: str, name: str, value, shape: tuple[int, ...], by: str, like_name: str, like: Tensor) -> None:
    """Refuses what is no float tensor of ``shape``, with dimensions of 1 in front, on the device of ``like``."""
    shown = shape if len(shape) == 1 else (1, *shape)
    check_dense(op, name, value, "a float tensor {}", shown)
    check_float_dtype(op, name, value)
    front = value.dim() - len(shape)
    if front < 0 or tuple(value.shape[front:]) != shape or any(side != 1 for side in value.shape[:front]):
        raise ValueError(f"{op}: {name} must have shape {shown}, got {tuple(value.shape)} (follows from {by})")
    check_device(op, name, value, like_name, like)


def side_pair(op: str, name: str, value) -> tuple[int, int]:
    """Height and width, from a whole number or a pair of them."""
    pair = (value, value) if is_whole(value) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{op}: {name} must be a whole number or a pair (height, width), got {value!r}")
    if not all(is_whole(side) and side >= 1 for side in pair):
        raise ValueError(f"{op}: {name} must be whole numbers of at least 1, got {value!r}")
    return as_python(pair[0]), as_python(pair[1])


def patch_grid(op: str, images: Tensor, patch: tuple[int, int], by: str = "patch_size") -> tuple[int, int]:
    """The number of patches down and across in images (N, C, H, W), whose sides must be multiples of the patch's."""
    if images.shape[2] % patch[0] or images.shape[3] % patch[1]:
        wanted = f"sides that are multiples of the patch size {tuple(patch)} of {by}"
        raise ValueError(f"{op}: images must have {wanted}, got {tuple(images.shape[2:])}")
    return images.shape[2] // patch[0], images.shape[3] // patch[1]


def to_patches(images: Tensor, height: int, width: int, channels_last: bool = False) -> Tensor:
    """Images (N, C, H, W) to patches (N, L, C height width); nothing is checked.

    The entries of a patch are in the order (c, p, q), or (p, q, c) with ``channels_last``.
    """
    n, channels, down, across = images.shape[0], images.shape[1], images.shape[2] // height, images.shape[3] // width
    cells = images.reshape(n, channels, down, height, across, width)
    cells = cells.permute(0, 2, 4, 3, 5, 1) if channels_last else cells.permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, down * across, channels * height * width)


def trackable(value: Tensor) -> Tensor:
    """``value``, or a copy that autograd may keep for the backward where ``value`` is an inference tensor and autograd records."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and value.is_inference()):
        return value
    return value.clone()


def dense_rows(x: Tensor) -> Tensor:
    """``x`` where the entries of a row are neighbours in memory, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def check_grid(op: str, grid) -> tuple[int, int]:
    """(h, w) as whole numbers of at least 1, with fewer than 2^31 patches."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f"{op}: grid must be a pair (h, w), got {grid!r}")
    height, width = (check_whole(op, "grid", side, 1) for side in grid)
    if height * width >= 2**31:
        raise ValueError(f"{op}: grid must have fewer than 2^31 patches, got {tuple(grid)}")
    return height, width
