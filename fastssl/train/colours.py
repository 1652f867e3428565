"""What a method makes of the colours of test images: how often it finds them, how far off it paints them, and ``colours.png``.

Any method that is a ``ColourMethod``: ``Colorization`` and ``SplitBrain``.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.methods._lab import lab_to_rgb
from fastssl.train.augment import as_float
from fastssl.train.data import batches, limited
from fastssl.train.evaluate import centre, evaluating
from fastssl.train.reconstruct import draw_rows, shown_images

BEST = 5  # bins of which one must be the true one


def count_colours(module: Any) -> None:
    """Before the first epoch: how often each colour comes in the training images, for the weights of the loss."""
    counts: Tensor | int = 0
    for images, *_ in batches(module.data.train, 512, workers=module.workers):
        if len(images):
            counts = counts + module.method.count(centre(as_float(images.to(module.device)), module.data.image_size))
    if isinstance(counts, Tensor):
        module.method.set_frequencies(counts)


@torch.no_grad()
def colour_scores(method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None) -> dict[str, float]:
    """How well a method tells the colours of the cells of test images.

    Args:
        method: a method that paints.
        data: its data set.
        device: where the method is.
        workers: processes that read images.
        most: number of test images; None for all.

    Returns:
        ``even``: the share of the cells whose colour is among the method's 5 most likely ones, the mean over all colours that come
        in these images; ``chance``: that of any 5 colours. ``top5``: the share over all cells; ``common``: that of the 5 colours
        that are the commonest in these very images. ``ab``: mean distance of the annealed mean from the true (a, b). ``grey`` and
        ``mean``: that of grey, and of the mean colour of these images. {} without test images that can be read.
    """
    found, true, painted = [], [], []
    with evaluating(method):
        for images, *_ in batches(data.test if most is None else limited(data.test, most), 256, workers=workers):
            if len(images):
                images = centre(as_float(images.to(device)), data.image_size)
                lab = method.lab(images)
                cells, logits = method.cells(lab), method.colour_logits(lab, images.dtype)
                best = logits.topk(BEST, 1).indices.permute(0, 2, 3, 1).reshape(-1, BEST)
                found.append((best == method.colours.nearest(cells)[:, None]).any(1))
                painted.append(method.colours.decode(logits, method.temperature).permute(0, 2, 3, 1).reshape(-1, 2))
                true.append(cells)
    if not true:
        return {}
    cells, hits = torch.cat(true), torch.cat(found).double()
    colour, count = method.colours.nearest(cells), method.colours.count(cells)
    each = torch.zeros_like(count).index_add(0, colour, hits)[count > 0] / count[count > 0]
    shares = {"even": each.mean(), "chance": hits.new_tensor(min(1.0, BEST / len(each)))}
    shares |= {"top5": hits.mean(), "common": count.topk(BEST).values.sum() / len(cells)}
    errors = {"ab": torch.cat(painted) - cells, "grey": cells, "mean": cells - cells.mean(0)}
    return {name: value.item() for name, value in (shares | {key: e.norm(dim=1).mean() for key, e in errors.items()}).items()}


@torch.no_grad()
def draw_colours(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """Test images (of training where there are none): their lightness, painted, and true -> ``path``, or None where none of them
    can be read."""
    images = shown_images(data, device)
    if not len(images):
        return None
    with evaluating(method):
        lab, painted = method.lab(images), method.colorize(images)
    grey = lab_to_rgb(torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], 1))
    return draw_rows({"grey": grey, "painted": painted, "true": images}, path)
