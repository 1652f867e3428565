"""What methods paint in clips, as ``next_frames.png`` and ``colour_tracking.png``: rows of frames with their names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.train.augment import as_float
from fastssl.train.evaluate import centre, evaluating
from fastssl.train.read import grey
from fastssl.train.reconstruct import COLUMNS, draw_rows


def shown_clips(data: Any, device: torch.device | str) -> Tensor | None:
    """Test clips (of training where there are none), evenly spaced: (N, T, 3, S, S) float; None where none can be read."""
    half = data.test if len(data.test) else data.train
    chosen = torch.linspace(0, len(half) - 1, min(len(half), COLUMNS), dtype=torch.float64).long().tolist()
    clips = half.__getitems__(chosen)[0].to(device)
    return centre(as_float(clips.flatten(0, 1)), data.image_size).unflatten(0, clips.shape[:2]) if len(clips) else None


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


@torch.no_grad()
def draw_tracking(method: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """The first frame of test clips, the lightness of the last one, what ``method`` paints it and how it is -> ``path``, or None
    without clips."""
    clips = shown_clips(data, device)
    if clips is None:
        return None
    with evaluating(method):
        painted = method.track(clips[:, 0], clips[:, -1])[0]
    return draw_rows({"reference": clips[:, 0], "grey": grey(clips[:, -1]), "painted": painted, "true": clips[:, -1]}, path)
