"""Checks of images of a known size, of what a mask is drawn from, and of its share."""

import torch
from torch import Tensor

from fastssl.checks import check_dense, check_number, check_whole
from fastssl.functional import num_kept


def pair_of(name: str, argument: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a side or of a pair of sides, whole numbers of at least 1."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{name}: {argument} must be a side or a pair of sides, got {size}")
    for side in pair:
        check_whole(name, argument, side, 1)
    return pair


def check_images(name: str, images: Tensor, shape: tuple[int, int, int], weight: Tensor, argument: str = "images") -> None:
    """Refuses what are no float images (N, C, H, W) of ``shape`` (C, H, W) with dtype and device of ``weight``, N at least 1."""
    check_dense(name, argument, images, "a tensor (N, C, H, W)")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or images.shape[0] == 0:
        wanted = f"(N, {', '.join(map(str, shape))})"
        raise ValueError(f"{name}: {argument} must have the shape of the backbone, {wanted}, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"{name}: {argument} must be floating, got {images.dtype}")
    if images.device != weight.device:
        raise ValueError(f"{name}: {argument} must be on the backbone's device {weight.device}, got {images.device}")
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(f"{name}: {argument} must have the backbone's dtype {weight.dtype}, got {images.dtype}")


def check_random(name: str, noise: Tensor | None, generator: torch.Generator | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuses anything but float noise of ``shape`` on the device of ``like``, or a generator, or neither of them."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{name}: generator must be a torch.Generator, got {type(generator).__name__}")
    if noise is None:
        return
    if generator is not None:
        raise ValueError(f"{name}: only one of noise and generator can be given")
    check_dense(name, "noise", noise, f"a tensor {tuple(shape)}")
    if not noise.is_floating_point():
        raise TypeError(f"{name}: noise must be floating, got {noise.dtype}")
    if noise.shape != shape or noise.device != like.device:
        wanted, got = f"{tuple(shape)} and lie on {like.device}", f"{tuple(noise.shape)} on {noise.device}"
        raise ValueError(f"{name}: noise must have shape {wanted}, got {got}")


def check_ratio(name: str, mask_ratio: float, length: int, rounding: str = "keep_floor") -> int:
    """How many of ``length`` patches or units stay. Refuses a ratio that keeps none of them or removes none."""
    check_number(name, "mask_ratio", mask_ratio, 0.0, 1.0)
    keep = num_kept(length, mask_ratio, rounding)
    if not 0 < keep < length:
        raise ValueError(f"{name}: mask_ratio must remove some of {length} patches and keep some, got {mask_ratio} (keeps {keep})")
    return keep
