"""How ``fastssl train lejepa`` runs LeJEPA."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor

from fastssl.methods import LeJEPA
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe
from fastssl.train.recipes._options import HiddenDim, ProjectionDim, Statistics
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class LeJEPASettings(ViewSettings):
    method: str = "lejepa"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 64
    lambda_param: Annotated[float, Option("weight of SIGReg; the rest is that of the views' agreement", least=0, most=1)] = 0.05
    slices: Annotated[int, Option("directions that SIGReg looks along in each step", least=1, unused_at=("lambda_param", 0))] = 256
    num_views: Annotated[int, Option("views of each image", least=2)] = 2
    statistics: Statistics = "global"


def build(config: LeJEPASettings, data: "ImageData") -> LeJEPA:
    return LeJEPA(
        backbone(config, data),
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        lambda_param=config.lambda_param,
        slices=config.slices,
        global_views=config.num_views,
        statistics=config.statistics,
    )


def several_views(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Views of one size, all of which are global."""
    return tuple(module.views.one(batch[0]) for _ in range(module.config.num_views))


RECIPE = image_recipe(LeJEPASettings, build, arguments=several_views, loss="LeJEPA")
