"""How ``fastssl train moco_v3`` runs MoCo v3."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import MoCoV3
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe, total_steps
from fastssl.train.recipes._options import FinalMomentum, HiddenDim, Momentum, Negatives, ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class MoCoV3Settings(ViewSettings):
    method: str = "moco_v3"
    temperature: Temperature = 0.2
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128
    momentum: Momentum = 0.99
    final_momentum: FinalMomentum = 1.0


def build(config: MoCoV3Settings, data: "ImageData") -> MoCoV3:
    return MoCoV3(
        backbone(config, data),
        temperature=config.temperature,
        negatives=config.negatives,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        momentum=config.momentum,
        final_momentum=config.final_momentum,
        total_steps=total_steps(config, data),
    )


RECIPE = image_recipe(MoCoV3Settings, build, loss="MoCo v3")
