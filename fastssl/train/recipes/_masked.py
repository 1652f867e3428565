"""What the recipes share of the methods that paint what was removed from an image.

They are scored by kNN as the other image methods, and by the error of removed pixels beside that of the simplest guess.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from torch import nn

from fastssl.functional import num_kept
from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import (
    WATCH,
    FolderSettings,
    PatchSettings,
    backbone,
    image_recipe,
    one_view,
    single_view,
    with_image_scores,
)
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData

T = TypeVar("T", bound=nn.Module)
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25  # on [0, 1] itself MAE paints nothing but the mean of the image for many epochs
Transformer = Annotated[str, Option("vit, or a vision transformer of timm where installed (also timm:NAME)")]


def refused_in_options(make: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """``make(...)``. A ``ValueError("method: argument ...")`` of it becomes one about the option of the argument's name."""
    try:
        return make(*arguments, **options)
    except ValueError as error:
        name = str(error).partition(": ")[2].partition(" ")[0].replace("_", "-")
        raise UsageError(f"--{name}: {error}") from None


def transformer(config: PatchSettings, data: "ImageData", positions: str = "sine") -> nn.Module:
    """The encoder of a masked method. MAE and SimMIM have fixed positions in the built-in one: learned ones cost epochs."""
    from fastssl.train.backbones import build_vit

    encoder = backbone(config, data)
    if config.backbone == "vit":
        encoder = build_vit(data.image_size, config.patch_size, channels=data.channels, positions=positions)
    if tuple(getattr(getattr(encoder, "patch_embed", None), "grid_size", ())) == (1, 1):
        option = f"--image-size {data.image_size}" if config.patch_size is None else f"--patch-size {config.patch_size}"
        made = f"makes one patch of an image of {data.image_size} x {data.image_size} pixels"
        raise UsageError(f"{option}: {made}, and {config.method} removes some patches and keeps others")
    return encoder


def fitting_size(sides: Sequence[int], sizes: Sequence[int], ratio: float, rounding: str = "keep_floor") -> int:
    """The first of ``sizes`` of a removed square that divides the image's sides and of which some are removed and some stay."""
    for size in sizes:
        count = 0 if any(side % size for side in sides) else math.prod(side // size for side in sides)
        if count and 0 < num_kept(count, ratio, rounding) < count:
            return size
    tried = f"no square of {min(sizes)} to {max(sizes)} pixels divides an image of {' x '.join(map(str, sides))}"
    raise UsageError(f"--mask-size: {tried} and leaves and removes some of it at --mask-ratio {ratio:g}")


def painted(method: nn.Module, data: "ImageData", **where: Any) -> dict[str, float]:
    """The errors of what is painted in test images."""
    from fastssl.train.reconstruct import reconstruction_errors

    return reconstruction_errors(method, data, **where)


def draw(method: nn.Module, data: "ImageData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``reconstruction.png`` -> its path, or None where no image can be read."""
    from fastssl.train.reconstruct import draw_reconstruction

    return draw_reconstruction(method, data, folder / "reconstruction.png", device=device)


def masked_recipe(settings: type[FolderSettings], build: Callable[[Any, Any], nn.Module], loss: str) -> Recipe:
    """The recipe of a method that paints what was removed from one view of an image."""
    return image_recipe(
        settings,
        build,
        augment=one_view,
        arguments=single_view,
        monitor=with_image_scores(painted),
        watch={
            **WATCH,
            "error": ("error", "squared error of removed", ".4f"),
            "fill": ("fill", "the same, mean of neighbours", ".4f"),
        },
        draw=draw,
        loss=loss,
    )
