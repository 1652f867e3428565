"""How ``fastssl train barlow_twins`` runs Barlow Twins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import BarlowTwins
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe
from fastssl.train.recipes._options import ProjectionDim, ProjectorDim, Statistics
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsSettings(ViewSettings):
    method: str = "barlow_twins"
    hidden_dim: ProjectorDim = None
    projection_dim: ProjectionDim = 1024
    lambda_param: Annotated[float, Option("weight of the correlations between different features", above=0)] = 5e-3
    statistics: Statistics = "global"


def build(config: BarlowTwinsSettings, data: "ImageData") -> BarlowTwins:
    return BarlowTwins(
        backbone(config, data),
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        lambda_param=config.lambda_param,
        statistics=config.statistics,
    )


RECIPE = image_recipe(BarlowTwinsSettings, build, loss="Barlow Twins")
