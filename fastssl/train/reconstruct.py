"""What a method paints where patches were removed: its error on test images, and ``reconstruction.png``.

Any method with ``reconstruct(images, generator=...) -> (corrupted, reconstruction, mask (N, L))`` and ``patch_size``. Beside the
error stands that of the simplest guess: each removed patch in the mean colour of its visible neighbours.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.train.augment import as_float
from fastssl.train.data import batches, limited
from fastssl.train.evaluate import centre, evaluating

COLUMNS, BLOCKS = 10, 2  # test images of the picture: in a row, and rows of triples


def pixel_mask(mask: Tensor, images: Tensor, patch: tuple[int, int]) -> Tensor:
    """mask (N, L) of patches of images (N, C, H, W) -> (N, 1, H, W)."""
    grid = mask.view(len(mask), 1, images.shape[2] // patch[0], images.shape[3] // patch[1])
    return grid.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)


def neighbour_fill(images: Tensor, mask: Tensor, patch: tuple[int, int]) -> Tensor:
    """images (N, C, H, W), mask (N, L), 1 = removed -> images whose removed patches have one colour: the mean of the visible ones
    of their 8 neighbours, and where there are none the mean of all visible patches of the image."""
    colour = F.avg_pool2d(images, patch)
    seen = 1.0 - mask.to(images.dtype).view(len(mask), 1, *colour.shape[2:])
    total, count = (F.avg_pool2d(part, 3, 1, 1) * 9 for part in (colour * seen, seen))
    whole = (colour * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    guess = torch.where(count > 0.5, total / count.clamp_min(1.0), whole)
    guess = guess.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)
    return torch.where(pixel_mask(mask, images, patch) > 0, guess, images)


def smoothed(images: Tensor) -> Tensor:
    """Each pixel the mean of its 3 x 3 neighbourhood."""
    return F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


@torch.no_grad()
def reconstruction_errors(
    method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None
) -> dict[str, float]:
    """How well a method paints test images. The same patches are removed each time.

    Of noise all pixels count, and the simplest guess is the noisy image ``smoothed``.

    Args:
        method: a method with ``reconstruct``.
        data: its data set.
        device: where the method is.
        workers: processes that read images.
        most: number of test images that are painted; None for all.

    Returns:
        ``error``: mean squared error of removed pixels, in [0, 1]. ``fill``: that of ``neighbour_fill``. Without test images that
        can be read, and for a method that paints with the true mean of each patch (``norm_pix_loss``), {}.
    """
    if not len(data.test) or getattr(method, "norm_pix_loss", False):
        return {}
    error, fill, count = 0.0, 0.0, 0.0
    noisy = getattr(method, "corruption", None) == "noise"
    generator = torch.Generator(device).manual_seed(0)
    with evaluating(method):
        for images, *_ in batches(data.test if most is None else limited(data.test, most), 512, workers=workers):
            if len(images):
                images = centre(as_float(images.to(device)), data.image_size)
                corrupted, painted, mask = method.reconstruct(images, generator=generator)
                guess = smoothed(corrupted) if noisy else neighbour_fill(images, mask, method.patch_size)
                removed = pixel_mask(mask, images, method.patch_size)
                error += ((painted - images).square() * removed).sum().item()
                fill += ((guess - images).square() * removed).sum().item()
                count += removed.sum().item() * images.shape[1]
    return {"error": error / count, "fill": fill / count} if count else {}


def as_colours(images: Tensor) -> Tensor:
    """Images (N, C, H, W) -> (N, 3, H, W): as they are, the first three bands, or one band in grey."""
    if images.shape[1] == 3:
        return images
    return images[:, :3] if images.shape[1] > 3 else images[:, :1].expand(-1, 3, -1, -1)


def mosaic(rows: list[Tensor], gap: int) -> Tensor:
    """Rows of images (N, C, H, W) -> one image (H', W', C), white between them and behind shorter rows."""
    columns = max(map(len, rows))
    lines = [F.pad(torch.cat([row, row.new_ones(columns - len(row), *row.shape[1:])]), (0, gap, 0, gap), value=1.0) for row in rows]
    return torch.cat([line.permute(2, 0, 3, 1).flatten(1, 2) for line in lines])


def shown_images(data: Any, device: torch.device | str) -> Tensor:
    """The test images (N, C, S, S) that a picture shows, of training where there are none; N is 0 where none can be read."""
    half = data.test if len(data.test) else data.train
    chosen = torch.linspace(0, len(half) - 1, min(len(half), COLUMNS * BLOCKS), dtype=torch.float64).long().tolist()
    return centre(as_float(half.__getitems__(chosen)[0].to(device)), data.image_size)


def draw_rows(kinds: dict[str, Tensor], path: Path) -> Path:
    """Rows of ``COLUMNS`` images (N, C, H, W), those of all kinds below each other with the kind's name -> ``path``."""
    from fastssl.train.pictures import STYLE, plt, save

    parts = [part.clamp(0, 1).float().cpu().split(COLUMNS) for part in kinds.values()]
    rows = [as_colours(part) for block in zip(*parts, strict=True) for part in block]
    height, gap = rows[0].shape[2], max(1, rows[0].shape[3] // 10)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.9 * len(rows[0]) + 1, 0.9 * len(rows)))
        axis.imshow(mosaic(rows, gap).numpy(), interpolation="nearest")
        axis.axis("off")
        for i in range(len(rows)):
            axis.text(-gap, i * (height + gap) + height / 2, list(kinds)[i % len(kinds)], ha="right", va="center")
        save(figure, path)
    return path


@torch.no_grad()
def draw_reconstruction(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """Test images (of training where there are none): whole, without what was removed, and as the method paints them -> ``path``,
    or None where none of them can be read."""
    images = shown_images(data, device)
    if not len(images):
        return None
    with evaluating(method):
        corrupted, painted, mask = method.reconstruct(images, generator=torch.Generator(device).manual_seed(0))
    noisy = getattr(method, "corruption", None) == "noise"
    if not noisy:
        corrupted = corrupted + 0.5 * pixel_mask(mask, images, method.patch_size)
    return draw_rows({"original": images, "noisy" if noisy else "masked": corrupted, "reconstructed": painted}, path)
