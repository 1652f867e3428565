"""How ``fastssl train byol`` runs BYOL."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import BYOL
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe, total_steps
from fastssl.train.recipes._options import FinalMomentum, HiddenDim, Momentum, ProjectionDim

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class BYOLSettings(ViewSettings):
    method: str = "byol"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128
    momentum: Momentum = 0.99
    final_momentum: FinalMomentum = 1.0


def build(config: BYOLSettings, data: "ImageData") -> BYOL:
    return BYOL(
        backbone(config, data),
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        momentum=config.momentum,
        final_momentum=config.final_momentum,
        total_steps=total_steps(config, data),
    )


RECIPE = image_recipe(BYOLSettings, build, loss="BYOL")
