"""How ``fastssl train dino`` runs DINO."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import DINO
from fastssl.train.recipes._crops import DistillationSettings, crop_backbone, crop_recipe, distillation
from fastssl.train.recipes._options import Centering

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class DINOSettings(DistillationSettings):
    method: str = "dino"
    centering: Centering = "center"


def build(config: DINOSettings, data: "ImageData") -> DINO:
    return DINO(crop_backbone(config, data), centering=config.centering, **distillation(config, data))


RECIPE = crop_recipe(DINOSettings, build, loss="DINO", blur=(1.0, 0.1, 0.5), solarize=0.2)
