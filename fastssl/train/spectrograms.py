"""What a method paints where patches of spectrograms were removed: its error on test sounds, and ``spectrograms.png``.

Any method with ``front_end`` and ``reconstruct(waveforms, generator=...) -> (masked, painted, mask (N, L))``. Values are
logarithms of power. Beside the error stands that of the simplest guess: each removed patch the mean of its visible neighbours.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.train.data import batches, limited
from fastssl.train.evaluate import evaluating
from fastssl.train.reconstruct import neighbour_fill, pixel_mask

COLUMNS = 5  # test sounds of the picture


@torch.no_grad()
def spectrogram_errors(method: Any, data: Any, *, device: torch.device | str, workers: int, most: int | None) -> dict[str, float]:
    """How well a method paints the spectrograms of test sounds. The same patches are removed each time.

    Returns:
        ``error``: mean squared error of removed patches. ``fill``: that of ``neighbour_fill``. {} where no test sound can be
        read.
    """
    error, fill, count = 0.0, 0.0, 0.0
    generator = torch.Generator(device).manual_seed(0)
    with evaluating(method):
        for waveforms, *_ in batches(data.test if most is None else limited(data.test, most), 512, workers=workers):
            if len(waveforms):
                whole = method.front_end(waveforms.to(device))
                _, painted, mask = method.reconstruct(waveforms.to(device), generator=generator)
                removed = pixel_mask(mask, whole, method.patch_size)
                error += ((painted - whole).square() * removed).sum().item()
                fill += ((neighbour_fill(whole, mask, method.patch_size) - whole).square() * removed).sum().item()
                count += removed.sum().item()
    return {"error": error / count, "fill": fill / count} if count else {}


@torch.no_grad()
def draw_spectrograms(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """Test sounds (of training where there are none): whole, without what was removed, and as the method paints them -> ``path``,
    or None where none of them can be read."""
    from fastssl.train.pictures import STYLE, plt, save

    half = data.test if len(data.test) else data.train
    chosen = torch.linspace(0, len(half) - 1, min(len(half), COLUMNS), dtype=torch.float64).long().tolist()
    waveforms, labels, *_ = half.__getitems__(chosen)
    if not len(waveforms):
        return None
    waveforms = waveforms.to(device)
    with evaluating(method):
        whole = method.front_end(waveforms)
        _, painted, mask = method.reconstruct(waveforms, generator=torch.Generator(device).manual_seed(0))
    masked = whole.masked_fill(pixel_mask(mask, whole, method.patch_size) > 0, float("nan"))
    low, high = whole.min().item(), whole.max().item()
    rows = {"whole": whole, "masked": masked, "painted": painted}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, len(whole), figsize=(2 * len(whole) + 1, 4), squeeze=False)
        for line, (name, images) in zip(axes, rows.items(), strict=True):
            for axis, image in zip(line, images, strict=True):
                axis.imshow(_as_picture(image), origin="lower", aspect="auto", interpolation="nearest", vmin=low, vmax=high)
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(name)
        for axis, label in zip(axes[0], labels.tolist(), strict=True):
            axis.set_title(data.class_names[label])
        save(figure, path)
    return path


def _as_picture(spectrogram: Tensor) -> Any:
    """(1, mels, frames) -> an array (mels, frames), the lowest band first."""
    return spectrogram[0].float().cpu().numpy()
