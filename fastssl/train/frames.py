"""What methods paint in clips, as ``next_frames.png`` and ``colour_tracking.png``: rows of frames with their names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.train.augment import as_float
from fastssl.train.evaluate import centre, evaluating
from fastssl.train.reconstruct import mosaic

SHOWN = 12  # test clips of a picture, a column each


def shown_clips(data: Any, device: torch.device | str) -> Tensor | None:
    """Test clips (of training where there are none), evenly spaced: (N, T, 3, S, S) float; None where none can be read."""
    half = data.test if len(data.test) else data.train
    chosen = torch.linspace(0, len(half) - 1, min(len(half), SHOWN), dtype=torch.float64).long().tolist()
    clips = half.__getitems__(chosen)[0].to(device)
    return centre(as_float(clips.flatten(0, 1)), data.image_size).unflatten(0, clips.shape[:2]) if len(clips) else None


def draw_rows(rows: dict[str, Tensor], path: Path) -> Path:
    """Rows of images (N, 3, S, S) under each other -> ``path``; a row is called by its name."""
    from fastssl.train.pictures import STYLE, plt, save

    parts = [row.clamp(0, 1).float().cpu() for row in rows.values()]
    side = parts[0].shape[3]
    gap = max(1, side // 10)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.9 * len(parts[0]) + 1, 0.9 * len(parts)))
        axis.imshow(mosaic(parts, gap).numpy(), interpolation="nearest")
        axis.axis("off")
        for i, name in enumerate(rows):
            axis.text(-gap, i * (side + gap) + side / 2, name, ha="right", va="center")
        save(figure, path)
    return path


@torch.no_grad()
def draw_next_frames(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """The given frames of test clips, the one that ``method`` predicts and the true one -> ``path``, or None without clips."""
    clips = shown_clips(data, device)
    if clips is None:
        return None
    with evaluating(method):
        seen, target = method.take(clips)
        painted = method.predict(seen)
    rows = {f"given {i + 1}": frame for i, frame in enumerate(seen.unbind(1))}
    return draw_rows(rows | {"predicted": painted, "true": target}, path)
