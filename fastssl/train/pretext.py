"""How well a method answers questions about test images whose answers are known, and the picture of its answers."""

from pathlib import Path
from typing import Any

import torch

from fastssl.train.augment import as_float
from fastssl.train.data import batches, limited
from fastssl.train.evaluate import centre, evaluating
from fastssl.train.reconstruct import as_colours, mosaic

MOST_NAMED = 1024  # training images of which a fresh view is named
COLUMNS, BLOCKS = 12, 2  # of the picture: images in a row, and rows of each kind


@torch.no_grad()
def solved_share(method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None) -> dict[str, float]:
    """The share of right answers about test images. The same questions are asked each time.

    Args:
        method: a method with ``answer``.
        data: its data set.
        device: where the method is.
        workers: processes that read images.
        most: number of test images that are asked about; None for all.

    Returns:
        ``solved``, in [0, 1]; {} without test images that can be read.
    """
    right, count = 0, 0
    generator = torch.Generator(device).manual_seed(0)
    with evaluating(method):
        for images, *_ in batches(data.test if most is None else limited(data.test, most), 512, workers=workers):
            if len(images):
                whole = centre(as_float(images.to(device)), data.image_size)
                answers, truth = method.answer(whole, generator=generator)
                right += int((answers == truth).sum())
                count += len(truth)
    return {"solved": right / count} if count else {}


@torch.no_grad()
def named_share(method: Any, data: Any, views: Any, *, device: torch.device | str, workers: int) -> dict[str, float]:
    """The share of fresh views of training images that are named as the image that they are of. The same views are drawn each time.

    Args:
        method: an ``Exemplar``.
        data: the data set that it learned from, whose training batches say which samples they hold.
        views: what ``TwoViews`` is.
        device: where the method is.
        workers: processes that read images.

    Returns:
        ``solved``, in [0, 1], of at most ``MOST_NAMED`` images; {} where none can be read.
    """
    right, count = 0, 0
    with evaluating(method), torch.random.fork_rng([torch.device(device)] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)
        for images, _, index in batches(limited(data.train, MOST_NAMED), 512, workers=workers):
            if len(images):
                answers, truth = method.answer(views.one(images.to(device)), index.to(device))
                right += int((answers == truth).sum())
                count += len(truth)
    return {"solved": right / count} if count else {}


@torch.no_grad()
def draw_answers(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """Test images (of training where there are none): transformed, put right as the method answers, and whole -> ``path``, or None
    where none of them can be read."""
    from fastssl.train.pictures import STYLE, plt, save

    half = data.test if len(data.test) else data.train
    chosen = torch.linspace(0, len(half) - 1, min(len(half), COLUMNS * BLOCKS), dtype=torch.float64).long().tolist()
    images = centre(as_float(half.__getitems__(chosen)[0].to(device)), data.image_size)
    if not len(images):
        return None
    with evaluating(method):
        asked, solved = method.solve(images, generator=torch.Generator(device).manual_seed(0))
    parts = [part.clamp(0, 1).float().cpu().split(COLUMNS) for part in (asked, solved, images)]
    rows = [as_colours(part) for block in zip(*parts, strict=True) for part in block]
    gap = max(1, images.shape[3] // 10)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.9 * len(rows[0]) + 1, 0.9 * len(rows)))
        axis.imshow(mosaic(rows, gap).numpy(), interpolation="nearest")
        axis.axis("off")
        for i in range(len(rows)):
            name = ("asked", "answered", "original")[i % 3]
            axis.text(-gap, i * (images.shape[2] + gap) + images.shape[2] / 2, name, ha="right", va="center")
        save(figure, path)
    return path
