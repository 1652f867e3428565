"""How ``fastssl train colorization`` runs colourization: the encoder sees the lightness of an image and tells its colours."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import Colorization
from fastssl.train.recipes._colours import ColourSettings, colour_recipe, encoder_of
from fastssl.train.recipes._masked import refused_in_options

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class ColorizationSettings(ColourSettings):
    method: str = "colorization"
    epochs: int = 6


def build(config: ColorizationSettings, data: "ImageData") -> Colorization:
    return refused_in_options(
        Colorization,
        encoder_of(config, data, 1),
        data.image_size,
        stride=config.stride,
        uniform=config.uniform,
        temperature=config.anneal,
    )


RECIPE = colour_recipe(ColorizationSettings, build)
