"""How ``fastssl train cola`` runs COLA: two segments of a sound, told from the segments of all others in the batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import COLA
from fastssl.train.recipes._options import Negatives, ProjectionDim
from fastssl.train.recipes._sounds import SegmentSettings, segment_recipe, spectrogram_encoder
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.sounds import SoundData


@dataclass(frozen=True, kw_only=True)
class COLASettings(SegmentSettings):
    method: str = "cola"
    epochs: int = 12
    lr: LearningRate = 2e-3
    knn_every: int = 4
    negatives: Negatives = "global"
    projection_dim: ProjectionDim = 128


def build(config: COLASettings, data: "SoundData") -> COLA:
    return COLA(spectrogram_encoder(data.rate), 256, projection_dim=config.projection_dim, negatives=config.negatives)


RECIPE = segment_recipe(COLASettings, build, loss="COLA")
