"""How ``fastssl train amdim`` runs AMDIM: one view against the places of the other, at two scales."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import AMDIM
from fastssl.train.recipes._images import backbone, image_recipe
from fastssl.train.recipes._local import MIRRORED, WATCH_PLACES, LocalSettings, known_layers
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


def layer_names(text: str) -> tuple[str, ...]:
    """An argparse type: names of layers, separated by commas."""
    return tuple(name.strip() for name in text.split(","))


@dataclass(frozen=True, kw_only=True)
class AMDIMSettings(LocalSettings):
    method: str = "amdim"
    epochs: int = 4
    clip: Annotated[float, Option("where the tanh ends the scores", above=0)] = 10.0
    penalty: Annotated[float, Option("weight of the mean squared score", least=0)] = 0.04
    layers: Annotated[
        tuple[str, ...] | None,
        Option(
            "layers whose maps are compared, by their names in named_modules(), the deepest one last",
            default="of conv those with a quarter and an eighth of the side",
            parse=layer_names,
            metavar="NAME,NAME",
        ),
    ] = None


def build(config: AMDIMSettings, data: "ImageData") -> AMDIM:
    return refused_in_options(
        AMDIM,
        backbone(config, data),
        known_layers(config, "layers", config.layers, ("5", "8")),
        projection_dim=config.projection_dim,
        clip=config.clip,
        penalty=config.penalty,
    )


RECIPE = image_recipe(
    AMDIMSettings,
    build,
    monitor=MIRRORED,
    watch=WATCH_PLACES,
    loss="AMDIM",
    negatives="the places of the other images of the same process",
)
