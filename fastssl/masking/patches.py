"""Images to patches and back, in the two orders of the field.

"pqc": entries (p, q, c) of a patch, channels fastest, as MAE, transformers and lightly have them. "cpq": entries (c, p, q), the
order of a convolution's weights.
"""

from torch import Tensor

from fastssl.checks import check_choice
from fastssl.ops._patches import check_floats, patch_grid, side_pair, to_patches

LAYOUTS = ("pqc", "cpq")


def patchify(images: Tensor, patch_size: int | tuple[int, int], *, layout: str = "pqc") -> Tensor:
    """Cuts images (N, C, H, W) into patches (N, L, C p q), L = H W / (p q), row by row from the top left.

    Args:
        images: (N, C, H, W) float32, bfloat16, float16 or float64; H and W are multiples of the patch's sides.
        patch_size: p = q, or (p, q), in pixels.
        layout: The order of a patch's entries: "pqc" (channels fastest) as in MAE, transformers and lightly, "cpq" as in the
            weights of a convolution.

    Returns:
        (N, L, C p q) in the dtype of ``images``; differentiable any number of times.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> import torch
        >>> from fastssl.functional import patchify
        >>> patchify(torch.rand(2, 3, 32, 32), 16).shape
        torch.Size([2, 4, 768])
    """
    op = "patchify"
    check_choice(op, "layout", layout, LAYOUTS)
    check_floats(op, "images", images, "N, C, H, W")
    height, width = side_pair(op, "patch_size", patch_size)
    patch_grid(op, images, (height, width))
    return to_patches(images, height, width, channels_last=layout == "pqc")


def unpatchify(
    patches: Tensor,
    patch_size: int | tuple[int, int],
    *,
    layout: str = "pqc",
    image_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Puts patches (N, L, C p q) back into images (N, C, H, W): the inverse of ``patchify``.

    Args:
        patches: (N, L, C p q) float32, bfloat16, float16 or float64.
        patch_size: p = q, or (p, q), in pixels.
        layout: The order of a patch's entries, "pqc" or "cpq", see ``patchify``.
        image_size: H = W, or (H, W), in pixels. None: the image has as many rows as columns of patches.

    Returns:
        (N, C, H, W) in the dtype of ``patches``; differentiable any number of times.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> import torch
        >>> from fastssl.functional import patchify, unpatchify
        >>> images = torch.rand(2, 3, 32, 48)
        >>> torch.equal(unpatchify(patchify(images, 16), 16, image_size=(32, 48)), images)
        True
    """
    op = "unpatchify"
    check_choice(op, "layout", layout, LAYOUTS)
    check_floats(op, "patches", patches, "N, L, P")
    height, width = side_pair(op, "patch_size", patch_size)
    n, length, entries = patches.shape
    if entries % (height * width):
        raise ValueError(f"{op}: patches must have a multiple of {height * width} entries, got {entries} (follows from patch_size)")
    if image_size is None:
        down = across = round(length**0.5)
    else:
        pair = side_pair(op, "image_size", image_size)
        if pair[0] % height or pair[1] % width:
            raise ValueError(f"{op}: image_size must be multiples of patch_size {(height, width)}, got {image_size!r}")
        down, across = pair[0] // height, pair[1] // width
    if down * across != length:
        wanted = "a square number of patches, or image_size" if image_size is None else f"{down} x {across} patches"
        raise ValueError(f"{op}: patches must have {wanted}, got {length} (follows from image_size and patch_size)")
    channels = entries // (height * width)
    if layout == "pqc":
        cells = patches.reshape(n, down, across, height, width, channels).permute(0, 5, 1, 3, 2, 4)
    else:
        cells = patches.reshape(n, down, across, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(n, channels, down * height, across * width)
