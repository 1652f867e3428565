"""What a pixel of test images costs under ImageGPT and under two simple models, and ``completions.png``."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.train.augment import as_float
from fastssl.train.data import batches, limited
from fastssl.train.evaluate import centre, evaluating
from fastssl.train.reconstruct import COLUMNS, draw_rows, shown_images

SAMPLE = 2000  # training images that palette and simple models are fitted to


def some_images(data: Any, half: Any, most: int | None, device: torch.device | str, workers: int) -> list[Tensor]:
    """Batches of at most ``most`` images (N, C, S, S) of a half, evenly taken."""
    part = half if most is None else limited(half, most)
    return [centre(as_float(i.to(device)), data.image_size) for i, *_ in batches(part, 256, workers=workers) if len(i)]


def fit_palette(module: Any) -> None:
    """Before the first epoch: the palette, of a sample of the training images."""
    images = some_images(module.data, module.data.train, SAMPLE, module.device, module.workers)
    if images:
        module.method.fit_palette(torch.cat(images), seed=module.config.seed)


def costs_of_simple_models(train: Tensor, test: Tensor, colours: int) -> dict[str, float]:
    """train (N, H, W), test (M, H, W): colours of pixels -> bits a pixel of the test images costs under two models.

    ``unigram``: the frequencies of the training pixels. ``copy``: the colour of the left neighbour (in the first column, of the one
    above) with a probability q, otherwise by the frequencies; q is what makes the training pixels cheapest.
    """
    share = (torch.bincount(train.flatten(), minlength=colours).double() + 1) / (train.numel() + colours)

    def cost(tokens: Tensor, q: float) -> float:
        same = torch.zeros_like(tokens, dtype=torch.bool)
        same[:, :, 1:] = tokens[:, :, 1:] == tokens[:, :, :-1]
        same[:, 1:, 0] = tokens[:, 1:, 0] == tokens[:, :-1, 0]
        p = (1 - q) * share[tokens] + q * same
        p[:, 0, 0] = share[tokens[:, 0, 0]]
        return -p.log2().mean().item()

    best = min((i / 20 for i in range(20)), key=lambda q: cost(train, q))
    return {"unigram": cost(test, 0.0), "copy": cost(test, best)}


@torch.no_grad()
def pixel_costs(method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None) -> dict[str, float]:
    """What a pixel of test images costs, in bits.

    Args:
        method: an ``ImageGPT``.
        data: an ``ImageData``.
        device: where the method is.
        workers: processes that read images.
        most: number of test images; None for all.

    Returns:
        ``bits`` under the method, ``unigram`` and ``copy`` as ``costs_of_simple_models`` has them. {} where a half has no images.
    """
    with evaluating(method):
        test = some_images(data, data.test, most, device, workers) if len(data.test) else []
        train = some_images(data, data.train, SAMPLE, device, workers)
        if not test or not train:
            return {}
        total = sum(method(images).item() * len(images) for images in test)
        seen, told = (torch.cat([method.quantize(i)[:, 1:] for i in half]).unflatten(1, method.shape[1:]) for half in (train, test))
    simple = costs_of_simple_models(seen, told, len(method.palette))
    return {"bits": total / sum(map(len, test)) / math.log(2), **simple}


@torch.no_grad()
def draw_completions(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """Upper halves of test images (of training where there are none), completed, and the true ones -> ``path``, or None where none
    of them can be read."""
    images = shown_images(data, device)[::2][:COLUMNS]
    if not len(images):
        return None
    rows = math.ceil(images.shape[2] / 2)
    given = images.clone()
    given[:, :, rows:] = 1.0
    with evaluating(method):
        completed = method.complete(images, rows, generator=torch.Generator(device).manual_seed(0))
    return draw_rows({"given": given, "sampled": completed, "true": images}, path)
