"""How ``fastssl train split_brain`` runs the split-brain autoencoder: of ``conv``, each half has half of the channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import SplitBrain
from fastssl.train.recipes._colours import ColourSettings, colour_recipe, encoder_of
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SplitBrainSettings(ColourSettings):
    method: str = "split_brain"
    epochs: int = 6
    uniform: float = 1.0
    lightness_bins: Annotated[int, Option("bins of the lightness", least=2)] = 100


def build(config: SplitBrainSettings, data: "ImageData") -> SplitBrain:
    return refused_in_options(
        SplitBrain,
        *(encoder_of(config, data, channels, share=2) for channels in (1, 2)),
        data.image_size,
        stride=config.stride,
        lightness_bins=config.lightness_bins,
        uniform=config.uniform,
        temperature=config.anneal,
    )


RECIPE = colour_recipe(SplitBrainSettings, build, loss="split-brain")
