"""How ``fastssl train dim`` runs local deep infomax: an image against the places of all images of the batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import DIM
from fastssl.train.recipes._images import backbone, image_recipe, single_view
from fastssl.train.recipes._local import PLACES, WATCH_PLACES, LocalSettings, known_layers
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.recipes._options import Negatives, Temperature
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class DIMSettings(LocalSettings):
    method: str = "dim"
    epochs: int = 6
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    layer: Annotated[
        str | None,
        Option("layer whose maps are compared, by its name in named_modules()", default="of conv that with a quarter of the side"),
    ] = None


def build(config: DIMSettings, data: "ImageData") -> DIM:
    return refused_in_options(
        DIM,
        backbone(config, data),
        known_layers(config, "layer", config.layer, "5"),
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        negatives=config.negatives,
    )


RECIPE = image_recipe(DIMSettings, build, arguments=single_view, monitor=PLACES, watch=WATCH_PLACES, loss="InfoNCE")
