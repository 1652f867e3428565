"""A palette by k-means over pixels, in torch alone and without a matrix product: the same bits on every CPU of a kind."""

import torch
from torch import Tensor

from fastssl.checks import check_whole

PART = 1 << 16  # pixels whose distances are there at once


def nearest_centres(pixels: Tensor, centres: Tensor) -> Tensor:
    """pixels (M, C), centres (K, C) -> the number (M,) int64 of the nearest centre of each."""
    parts = []
    for part in pixels.split(PART):
        square = sum((part[:, c, None] - centres[:, c]).square() for c in range(centres.shape[1]))
        assert isinstance(square, Tensor)
        parts.append(square.argmin(1))
    return torch.cat(parts)


def pixel_centres(pixels: Tensor, count: int, iterations: int, seed: int) -> Tensor:
    """Lloyd's algorithm from ``count`` of the pixels (M, C), different ones where there are as many -> centres (count, C).

    A centre that no pixel is nearest to stays where it is. Raises for what ``ImageGPT.fit_palette`` may be given wrongly.
    """
    check_whole("ImageGPT", "iterations", iterations, 0)
    check_whole("ImageGPT", "seed", seed, 0, 2**63)
    if not pixels.isfinite().all():
        raise ValueError("ImageGPT: images must be finite for a palette of their colours, got NaN or infinite pixels")
    known = pixels.unique(dim=0)
    known = known if len(known) >= count else pixels
    chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:count]
    centres = known[chosen.to(pixels.device)].clone()
    for _ in range(iterations):
        own = nearest_centres(pixels, centres)
        total = torch.zeros_like(centres, dtype=torch.float64).index_add_(0, own, pixels.double())
        size = torch.bincount(own, minlength=count).double()[:, None]
        centres = torch.where(size > 0, total / size.clamp_min(1.0), centres.double()).to(pixels.dtype)
    return centres
