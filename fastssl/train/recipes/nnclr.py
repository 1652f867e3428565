"""How ``fastssl train nnclr`` runs NNCLR, with a queue of half of the training images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import NNCLR
from fastssl.train.recipes._images import ViewSettings, backbone, half_of_images, image_recipe
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, QueueSize, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class NNCLRSettings(ViewSettings):
    method: str = "nnclr"
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128
    queue_size: QueueSize = None


def build(config: NNCLRSettings, data: "ImageData") -> NNCLR:
    return NNCLR(
        backbone(config, data),
        queue_size=config.queue_size or half_of_images(data),
        temperature=config.temperature,
        negatives=config.negatives,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
    )


RECIPE = image_recipe(NNCLRSettings, build, loss="nearest-neighbour InfoNCE")
