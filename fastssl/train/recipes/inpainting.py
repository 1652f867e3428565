"""How ``fastssl train inpainting`` runs a convolutional autoencoder of images with squares removed, or with noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import Inpainting
from fastssl.train import UsageError
from fastssl.train.recipes._images import FolderSettings, backbone
from fastssl.train.recipes._masked import fitting_size, masked_recipe, refused_in_options
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData

SQUARE = 8  # side in pixels of what is removed
BLOCKS, NOISE = ("corruption", "blocks"), ("corruption", "noise")


@dataclass(frozen=True, kw_only=True)
class InpaintingSettings(FolderSettings):
    method: str = "inpainting"
    backbone: Annotated[str, Option("conv, or a convolutional model of timm where installed (also timm:NAME)")] = "conv"
    epochs: int = 12
    batch_size: int = 64
    lr: LearningRate = 2e-3
    knn_every: int = 4
    min_scale: float = 0.8
    corruption: Annotated[
        str, Option("blocks: squares are removed; noise: noise is added to the pixels", choices=("blocks", "noise"))
    ] = "blocks"
    mask_ratio: Annotated[float, Option("share of the squares that is removed", above=0, most=1, only_with=BLOCKS)] = 0.25
    mask_size: Annotated[
        int | None,
        Option(
            "side in pixels of the squares that are removed",
            least=1,
            default=f"{SQUARE}, or the largest size below that fits the image",
            only_with=BLOCKS,
        ),
    ] = None
    sigma: Annotated[float, Option("standard deviation of the noise, pixels in [0, 1]", above=0, only_with=NOISE)] = 0.2


def build(config: InpaintingSettings, data: "ImageData") -> Inpainting:
    """Removes squares of ``SQUARE`` pixels, or of the largest size below that fits."""
    if config.backbone == "conv" and data.image_size % 16:
        raise UsageError(f"--image-size {data.image_size}: must be a multiple of 16 for inpainting with --backbone conv")
    size = config.mask_size or SQUARE
    if config.mask_size is None and config.corruption == "blocks":
        size = fitting_size([data.image_size] * 2, range(SQUARE, 0, -1), config.mask_ratio)
    return refused_in_options(
        Inpainting,
        backbone(config, data),
        data.image_size,
        channels=data.channels,
        corruption=config.corruption,
        mask_ratio=config.mask_ratio,
        mask_size=size,
        sigma=config.sigma,
    )


RECIPE = masked_recipe(InpaintingSettings, build, loss="reconstruction")
