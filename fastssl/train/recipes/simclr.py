"""How ``fastssl train simclr`` runs SimCLR."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import SimCLR
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings(ViewSettings):
    method: str = "simclr"
    temperature: Temperature = 0.5
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128


def build(config: SimCLRSettings, data: "ImageData") -> SimCLR:
    return SimCLR(
        backbone(config, data),
        temperature=config.temperature,
        negatives=config.negatives,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
    )


RECIPE = image_recipe(SimCLRSettings, build, loss="NT-Xent")
