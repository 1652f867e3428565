"""How ``fastssl train pirl`` runs pretext-invariant features: the bank has a row for each training image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import PIRL
from fastssl.train.recipes._images import ViewSettings, load_indexed, view_and_index
from fastssl.train.recipes._options import ProjectionDim, Temperature
from fastssl.train.recipes._pretext import part_encoder, pretext_recipe
from fastssl.train.recipes.instdisc import fill_bank
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class PIRLSettings(ViewSettings):
    method: str = "pirl"
    epochs: int = 7
    batch_size: int = 128
    lr: LearningRate = 2e-3
    temperature: Temperature = 0.1
    projection_dim: ProjectionDim = 128
    weight: Annotated[float, Option("share of the puzzle's term in the loss", least=0, most=1)] = 0.5


def build(config: PIRLSettings, data: "ImageData") -> PIRL:
    """Tiles have 8 pixels a side where the images have 32."""
    size = max(2, data.image_size // 3 * 64 // 75)
    return PIRL(
        part_encoder(config, data, size, whole=True),
        len(data.train),
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        weight=config.weight,
        tile_size=size,
    )


RECIPE = pretext_recipe(
    PIRLSettings,
    build,
    ("puzzles", "puzzles matched with their image among 512 test images"),
    load=load_indexed,
    arguments=view_and_index,
    prepare=fill_bank,
    loss="instance discrimination",
    negatives="the bank, which is the same in all processes",
)
