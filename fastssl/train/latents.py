"""How well I-JEPA predicts: whether its prediction of a hidden patch is nearer to that patch than to those of other images."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from fastssl.masking import ContextAndTargets
from fastssl.train.augment import as_float
from fastssl.train.data import batches
from fastssl.train.evaluate import centre, evaluating

GROUP = 100  # images that a prediction is compared with


def nearest_own(pred: Tensor, target: Tensor) -> Tensor:
    """pred, target (N, P, E): predictions and latents of P patches of N images -> (P, N) bool: whether the prediction is nearer to
    its own image's latent than to those of the other images at the same place."""
    distance = torch.cdist(pred.transpose(0, 1).float(), target.transpose(0, 1).float())
    return distance.argmin(2) == torch.arange(len(pred), device=pred.device)


@torch.no_grad()
def found_patches(method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None) -> dict[str, float]:
    """The share of hidden patches of test images that are told from those at the same place in 99 other ones by the prediction.

    All images of a group have the same blocks, which follow from the number of the group, so that no place gives an image away.

    Args:
        method: an ``IJEPA``.
        data: an ``ImageData``.
        most: test images that are looked at; None for all.

    Returns:
        ``found``; {} with fewer than two test images that can be read.
    """
    found, count = 0, 0
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:most]  # classes come one after the other
    half = Subset(data.test, chosen.tolist())
    with evaluating(method):
        for number, (images, *_) in enumerate(batches(half, GROUP, workers=workers)):
            if len(images) < 2:
                continue
            images = method.scaled(centre(as_float(images.to(device)), data.image_size))
            one = method.choose(1, torch.Generator().manual_seed(number), images.device)
            context, targets = (ids.expand(len(images), *ids.shape[1:]) for ids in one)
            pred = method.predict(method.context_features(images, context), context, targets).flatten(1, 2)
            latents = method.latents(images, ContextAndTargets(context, targets))
            right = nearest_own(pred, latents)
            found, count = found + int(right.sum()), count + right.numel()
    return {"found": found / count} if count else {}
