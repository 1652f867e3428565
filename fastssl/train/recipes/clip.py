"""How ``fastssl train clip`` runs CLIP."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import CLIP
from fastssl.train.recipes._captions import CaptionSettings, caption_recipe, encoders
from fastssl.train.recipes._options import Negatives, ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.captions import CaptionData


@dataclass(frozen=True, kw_only=True)
class CLIPSettings(CaptionSettings):
    method: str = "clip"
    temperature: Temperature = 0.07
    negatives: Negatives = "global"
    projection_dim: ProjectionDim = 128


def build(config: CLIPSettings, data: "CaptionData") -> CLIP:
    return CLIP(*encoders(config, data), config.projection_dim, temperature=config.temperature, negatives=config.negatives)


RECIPE = caption_recipe(CLIPSettings, build, loss="CLIP")
