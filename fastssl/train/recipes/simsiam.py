"""How ``fastssl train simsiam`` runs SimSiam."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import SimSiam
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe
from fastssl.train.recipes._options import HiddenDim, ProjectionDim

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SimSiamSettings(ViewSettings):
    method: str = "simsiam"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128


def build(config: SimSiamSettings, data: "ImageData") -> SimSiam:
    return SimSiam(backbone(config, data), hidden_dim=config.hidden_dim, projection_dim=config.projection_dim)


RECIPE = image_recipe(SimSiamSettings, build, loss="negative cosine")
