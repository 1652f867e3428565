"""How ``fastssl train vicreg`` runs VICReg."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import VICReg
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe
from fastssl.train.recipes._options import ProjectionDim, ProjectorDim, Statistics
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class VICRegSettings(ViewSettings):
    method: str = "vicreg"
    hidden_dim: ProjectorDim = None
    projection_dim: ProjectionDim = 1024
    lambda_param: Annotated[float, Option("weight of the agreement of both views", above=0)] = 25.0
    mu_param: Annotated[float, Option("weight of the variance of each feature", above=0)] = 25.0
    nu_param: Annotated[float, Option("weight of the covariance of different features", above=0)] = 1.0
    statistics: Statistics = "global"


def build(config: VICRegSettings, data: "ImageData") -> VICReg:
    return VICReg(
        backbone(config, data),
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        lambda_param=config.lambda_param,
        mu_param=config.mu_param,
        nu_param=config.nu_param,
        statistics=config.statistics,
    )


RECIPE = image_recipe(VICRegSettings, build, loss="VICReg")
