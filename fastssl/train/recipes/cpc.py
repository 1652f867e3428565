"""How ``fastssl train cpc`` runs contrastive predictive coding: an image is columns of overlapping patches, read downwards."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fastssl.methods import CPC
from fastssl.methods._columns import patch_columns
from fastssl.train.recipes._images import ViewSettings, image_recipe, single_view
from fastssl.train.recipes._options import Negatives, ProjectionDim, Temperature
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class CPCSettings(ViewSettings):
    method: str = "cpc"
    epochs: int = 3
    batch_size: int = 64
    lr: LearningRate = 2e-3
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    projection_dim: ProjectionDim = 128


def patches(images: Tensor) -> Tensor:
    """Patches of a quarter of the side that overlap by half from top to bottom: 4 columns of 7."""
    side = images.shape[-1] // 4
    return patch_columns(images, side, side // 2, side)


def build(config: CPCSettings, data: "ImageData") -> CPC:
    """The encoder is made for the patches and sees nothing else."""
    from fastssl.train.backbones import build_backbone

    encoder = build_backbone(config.backbone, data.image_size // 4, data.channels, patch_size=config.patch_size)
    steps = (2, 3, 4)  # half of the patch that is 1 step on is known already
    return CPC(
        encoder,
        steps=steps,
        split=patches,
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        negatives=config.negatives,
    )


RECIPE = image_recipe(CPCSettings, build, arguments=single_view, loss="InfoNCE", encoder="")
