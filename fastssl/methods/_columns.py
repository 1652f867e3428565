"""The patches of a picture as sequences, from top to bottom."""

from torch import Tensor


def patch_columns(images: Tensor, size: int, down: int, across: int) -> Tensor:
    """The patches of images, each column of them a sequence from top to bottom.

    Args:
        images: (B, C, H, W).
        size: side of a patch in pixels.
        down, across: pixels from one patch to the next; below ``size`` the patches overlap.

    Returns:
        (B columns, rows, C, size, size).

    Raises:
        ValueError: a patch that is larger than the images, or a step below 1.

    Examples:
        >>> patch_columns(torch.rand(2, 3, 8, 8), size=4, down=2, across=4).shape
        torch.Size([4, 3, 3, 4, 4])
    """
    if images.ndim != 4 or not 1 <= size <= min(images.shape[2:]) or min(down, across) < 1:
        raise ValueError(
            "patch_columns: size must be from 1 to the side of images (B, C, H, W), down and across at least 1, "
            f"got {size}, {down} and {across} for {tuple(images.shape)}"
        )
    patches = images.unfold(2, size, down).unfold(3, size, across)  # (B, C, rows, columns, size, size)
    return patches.permute(0, 3, 2, 1, 4, 5).flatten(0, 1)
