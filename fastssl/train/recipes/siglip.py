"""How ``fastssl train siglip`` runs SigLIP."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import SigLIP
from fastssl.train.recipes._captions import CaptionSettings, caption_recipe, encoders
from fastssl.train.recipes._options import Negatives, ProjectionDim

if TYPE_CHECKING:
    from fastssl.train.captions import CaptionData


@dataclass(frozen=True, kw_only=True)
class SigLIPSettings(CaptionSettings):
    method: str = "siglip"
    projection_dim: ProjectionDim = 128
    negatives: Negatives = "global"


def build(config: SigLIPSettings, data: "CaptionData") -> SigLIP:
    return SigLIP(*encoders(config, data), config.projection_dim, negatives=config.negatives)


RECIPE = caption_recipe(SigLIPSettings, build, loss="SigLIP")
