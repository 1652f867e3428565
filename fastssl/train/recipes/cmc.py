"""How ``fastssl train cmc`` runs contrastive multiview coding: the lightness of one view and the colour of the other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastssl.methods import CMC
from fastssl.train import UsageError
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class CMCSettings(ViewSettings):
    method: str = "cmc"
    epochs: int = 6
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128


def build(config: CMCSettings, data: "ImageData") -> CMC:
    from fastssl.train.augment import lab_views

    if data.channels != 3:
        raise UsageError(f"--channels {data.channels}: cmc parts colour images into lightness and colour, which needs 3")
    return CMC(
        [backbone(config, data), backbone(config, data)],
        split=lab_views,
        temperature=config.temperature,
        negatives=config.negatives,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
    )


def lightness_and_colour(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    view0, view1 = module.views(batch[0])
    return module.method.split(view0)[0], module.method.split(view1)[1]


RECIPE = image_recipe(CMCSettings, build, arguments=lightness_and_colour, loss="InfoNCE", encoder="")
