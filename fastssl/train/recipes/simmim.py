"""How ``fastssl train simmim`` runs SimMIM."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import SimMIM
from fastssl.train.recipes._images import PatchSettings
from fastssl.train.recipes._masked import (
    PIXEL_MEAN,
    PIXEL_STD,
    Transformer,
    fitting_size,
    masked_recipe,
    refused_in_options,
    transformer,
)
from fastssl.train.recipes._options import MaskRatio
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SimMIMSettings(PatchSettings):
    method: str = "simmim"
    backbone: Transformer = "vit"
    epochs: int = 8
    batch_size: int = 64
    lr: LearningRate = 1e-3
    knn_every: int = 4
    min_scale: float = 0.8
    mask_ratio: MaskRatio = 0.6
    mask_size: Annotated[
        int | None,
        Option("side in pixels of the squares that are removed", least=1, default="two patches, or one where two do not fit"),
    ] = None


def build(config: SimMIMSettings, data: "ImageData") -> SimMIM:
    """Removes squares of two patches, as SimMIM's 32 pixels are, or of one where two do not fit."""
    encoder = transformer(config, data)
    embed = getattr(encoder, "patch_embed", None)
    patch, grid = getattr(embed, "patch_size", (4, 4))[0], getattr(embed, "grid_size", (2, 2))
    size = config.mask_size or fitting_size([patch * side for side in grid], (2 * patch, patch), config.mask_ratio, "mask_ceil")
    return refused_in_options(
        SimMIM, encoder, mask_ratio=config.mask_ratio, mask_size=size, pixel_mean=PIXEL_MEAN, pixel_std=PIXEL_STD
    )


RECIPE = masked_recipe(SimMIMSettings, build, loss="SimMIM")
