"""How ``fastssl train next_frame`` predicts the next frame of a clip."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from fastssl.methods import NextFrame
from fastssl.train import UsageError
from fastssl.train.recipes._clips import ClipSettings, clip_recipe, encoder
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.clips import ClipData


@dataclass(frozen=True, kw_only=True)
class NextFrameSettings(ClipSettings):
    method: str = "next_frame"
    backbone: Annotated[str, Option("conv, or a convolutional model of timm where installed (also timm:NAME)")] = "conv"
    epochs: int = 12
    batch_size: int = 32
    knn_every: int = 4
    lr: LearningRate = 2e-3
    given: Annotated[int, Option("frames that are seen before the predicted one", least=1)] = 4


def build(config: NextFrameSettings, data: "ClipData") -> NextFrame:
    if config.given >= config.frames:
        raise UsageError(f"--given {config.given}: must be below --frames {config.frames}")
    if config.backbone == "conv" and data.image_size % 16:
        raise UsageError(f"--image-size {data.image_size}: must be a multiple of 16 for next_frame with --backbone conv")
    return refused_in_options(NextFrame, encoder(config, data), data.image_size, given=config.given)


def errors(method: NextFrame, clips: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
    """``error``: mean squared error of the predicted frames of test clips, pixels in [0, 1]. ``copy``: that of the last given frame
    in their place."""
    error, copied, count = 0.0, 0.0, 0
    for frames, *_ in clips:
        seen, target = method.take(frames)
        error += (method.predict(seen) - target).square().sum().item()
        copied += (seen[:, -1] - target).square().sum().item()
        count += target.numel()
    return {"error": error / count, "copy": copied / count} if count else {}


def draw(method: NextFrame, data: "ClipData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``next_frames.png`` -> its path, or None where no clip can be read."""
    from fastssl.train.frames import draw_next_frames

    return draw_next_frames(method, data, folder / "next_frames.png", device=device)


RECIPE = clip_recipe(
    NextFrameSettings,
    build,
    errors,
    {
        "error": ("error", "squared error of the next frame", ".4f"),
        "copy": ("copy", "the same, last frame copied", ".4f"),
    },
    draw=draw,
    loss="squared error",
)
