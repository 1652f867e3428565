"""How ``fastssl train multi_format`` runs multi-format contrast: the waveform of a segment against the spectrogram of another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import MultiFormat
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, Temperature
from fastssl.train.recipes._sounds import SegmentSettings, segment_recipe, spectrogram_encoder
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.sounds import SoundData


@dataclass(frozen=True, kw_only=True)
class MultiFormatSettings(SegmentSettings):
    method: str = "multi_format"
    epochs: int = 12
    lr: LearningRate = 2e-3
    knn_every: int = 4
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128


def build(config: MultiFormatSettings, data: "SoundData") -> MultiFormat:
    from fastssl.train.backbones import WaveEncoder

    return MultiFormat(
        WaveEncoder(),
        spectrogram_encoder(data.rate),
        wave_dim=256,
        spectrogram_dim=256,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        negatives=config.negatives,
    )


RECIPE = segment_recipe(MultiFormatSettings, build, loss="InfoNCE")
