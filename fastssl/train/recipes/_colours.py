"""What the recipes share of the methods that tell colours: scores beside those of the simplest guesses, and ``colours.png``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import nn

from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import WATCH, FolderSettings, image_recipe, one_view, single_view, with_image_scores
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class ColourSettings(FolderSettings):
    """Of the methods that tell colours."""

    backbone: Annotated[str, Option("conv, or a convolutional model of timm where installed (also timm:NAME)")] = "conv"
    batch_size: int = 64
    lr: LearningRate = 2e-3
    min_scale: float = 0.5
    stride: Annotated[int, Option("side in pixels of the cells whose colour is told", least=1)] = 4
    uniform: Annotated[
        float,
        Option("share of the uniform distribution in the frequencies that weigh the colours, 1 for equal weights", above=0, most=1),
    ] = 0.5
    anneal: Annotated[float, Option("temperature of the mean colour that is painted", above=0)] = 0.38


def encoder_of(config: ColourSettings, data: "ImageData", channels: int, share: int = 1) -> nn.Module:
    """The encoder that ``--backbone`` names, for so many channels; refused where the images have no colours.

    ``conv`` has its widths divided by ``share``.
    """
    from fastssl.train.backbones import ConvEncoder, build_backbone

    if data.channels != 3:
        raise UsageError(f"--channels {data.channels}: {config.method} tells the colours of images, which needs 3")
    if config.backbone == "conv" and data.image_size % 16:
        raise UsageError(f"--image-size {data.image_size}: must be a multiple of 16 for {config.method} with --backbone conv")
    if config.backbone == "conv":
        return ConvEncoder((32 // share, 64 // share, 128 // share, 256 // share), channels=channels)
    return build_backbone(config.backbone, data.image_size, channels)


def colours_told(method: nn.Module, data: "ImageData", **where: Any) -> dict[str, float]:
    """How well the colours of test images are told."""
    from fastssl.train.colours import colour_scores

    return colour_scores(method, data, **where)


def count_colours(module: Any) -> None:
    """Before the first epoch: how often each colour comes in the training images."""
    from fastssl.train.colours import count_colours

    count_colours(module)


def draw(method: nn.Module, data: "ImageData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``colours.png`` -> its path, or None where no image can be read."""
    from fastssl.train.colours import draw_colours

    return draw_colours(method, data, folder / "colours.png", device=device)


def colour_recipe(settings: type[FolderSettings], build: Callable[[Any, Any], nn.Module], **more: Any) -> Recipe:
    """The recipe of a method that tells the colours of one view of an image."""
    return image_recipe(
        settings,
        build,
        augment=one_view,
        arguments=single_view,
        monitor=with_image_scores(colours_told),
        prepare=count_colours,
        watch={
            **WATCH,
            "even": ("even", "colour among the 5 likeliest", ".3f"),
            "chance": ("chance", "the same, any 5 colours", ".3f"),
            "ab": ("ab", "distance of painted (a, b)", ".2f"),
            "grey": ("grey", "the same of grey", ".2f"),
        },
        draw=draw,
        encoder="",  # it sees lightness, or colour, and not images
        **({"loss": "colour"} | more),
    )
