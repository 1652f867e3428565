"""How well an image is known by its places: whether the global embedding that is nearest to a place is that of its own image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Subset

from fastssl.train.augment import as_float
from fastssl.train.data import batches
from fastssl.train.evaluate import centre, evaluating

GROUP = 100  # images among which a place looks for its own


@torch.no_grad()
def found_images(
    method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None, mirrored: bool = False
) -> dict[str, float]:
    """The share of the places of test images whose image is told by them from 99 other ones.

    Args:
        method: ``DIM`` or ``AMDIM``, of which the first layer's places are taken.
        data: an ``ImageData``.
        device: where the method is.
        workers: processes that read images.
        most: test images that are looked at; None for all.
        mirrored: whether the places are those of the mirrored images.

    Returns:
        ``found``; {} with fewer than two test images that can be read.
    """
    found, count = 0, 0
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:most]  # classes come one after the other
    with evaluating(method):
        for images, *_ in batches(Subset(data.test, chosen.tolist()), GROUP, workers=workers):
            if len(images) < 2:
                continue
            images = centre(as_float(images.to(device)), data.image_size)
            whole, places = method.project(images)
            if mirrored:
                _, places = method.project(images.flip(3))
            if getattr(method, "normalize", False):
                whole, places = F.normalize(whole, dim=1), [F.normalize(places[0], dim=2)]
            best = torch.einsum("ipd,jd->ipj", places[0], whole).argmax(2)
            right = best == torch.arange(len(images), device=best.device)[:, None]
            found, count = found + int(right.sum()), count + right.numel()
    return {"found": found / count} if count else {}
