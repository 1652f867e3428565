"""How ``fastssl train color_tracking`` learns to point at the colours of a reference frame."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.methods import ColorTracking
from fastssl.methods._clusters import k_means
from fastssl.methods._lab import rgb_to_lab
from fastssl.train import UsageError
from fastssl.train.recipes._clips import ClipSettings, clip_recipe
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.recipes._options import ProjectionDim
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.clips import ClipData

CELL = 4  # side in pixels of the squares whose mean colours are clustered
MOST = 1024  # training clips whose first frame is looked at for that


@dataclass(frozen=True, kw_only=True)
class ColorTrackingSettings(ClipSettings):
    method: str = "color_tracking"
    backbone: Annotated[str, Option("conv, or a convolutional model of timm where installed (also timm:NAME)")] = "conv"
    epochs: int = 6
    batch_size: int = 32
    lr: LearningRate = 2e-3
    num_colours: Annotated[int, Option("classes of colours, by k-means", least=2, most=1024)] = 16
    projection_dim: ProjectionDim = 64


def colours_of(data: "ClipData", count: int, seed: int) -> Tensor:
    """The means (K, 2) of at most ``count`` clusters of the (a, b) of the first frames of training clips."""
    from fastssl.train.augment import as_float
    from fastssl.train.data import batches, limited

    firsts = [as_float(clips[:, 0]) for clips, *_ in batches(limited(data.train, MOST), 256) if len(clips)]
    if not firsts:
        raise UsageError(f"--data {data.name}: none of the training clips looked at can be read")
    ab = F.avg_pool2d(rgb_to_lab(torch.cat(firsts))[:, 1:], CELL).permute(0, 2, 3, 1).reshape(-1, 2)
    found = k_means(ab, min(count, len(ab.unique(dim=0))), seed)
    return torch.stack([ab[found == label].mean(0) for label in found.unique()])


def fine_encoder(config: ColorTrackingSettings, data: "ClipData") -> nn.Module:
    """The encoder for lightness. The last two layers of the built-in one keep the side of the maps, a quarter of a frame's, as the
    paper's ResNet was changed to do; its weights have the shapes of the usual one."""
    from fastssl.train.backbones import ConvEncoder, build_backbone

    if config.backbone == "conv":
        return ConvEncoder(strides=(2, 2, 1, 1), channels=1)
    return build_backbone(config.backbone, data.image_size, 1, patch_size=config.patch_size)


def build(config: ColorTrackingSettings, data: "ClipData") -> ColorTracking:
    if config.backbone == "conv" and data.image_size % 4:
        raise UsageError(f"--image-size {data.image_size}: must be a multiple of 4 for color_tracking with --backbone conv")
    colours = colours_of(data, config.num_colours, config.seed)
    encoder = fine_encoder(config, data)
    return refused_in_options(ColorTracking, encoder, colours, data.image_size, projection_dim=config.projection_dim)


def right(method: ColorTracking, clips: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
    """``right``: the share of the places of the last frames of test clips whose class of colour is found from the first frames.
    ``same``: that of the class at the same place of the first frame. Clips of one class count in neither."""
    hits, copied, count = 0, 0, 0
    for frames, *_ in clips:
        _, found, true = method.track(frames[:, 0], frames[:, -1])
        before = method.classes(method.lab(frames[:, 0]))
        coloured = (torch.cat([before, true], 1) != before[:, :1]).any(1)
        hits += int((found == true)[coloured].sum())
        copied += int((before == true)[coloured].sum())
        count += true[coloured].numel()
    return {"right": hits / count, "same": copied / count} if count else {}


def draw(method: ColorTracking, data: "ClipData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``colour_tracking.png`` -> its path, or None where no clip can be read."""
    from fastssl.train.frames import draw_tracking

    return draw_tracking(method, data, folder / "colour_tracking.png", device=device)


RECIPE = clip_recipe(
    ColorTrackingSettings,
    build,
    right,
    {
        "right": ("right", "colours found", ".3f"),
        "same": ("same", "the same, same place copied", ".3f"),
    },
    draw=draw,
    loss="cross-entropy",
    encoder="",  # it sees the lightness of images
    needs_data=True,
)
