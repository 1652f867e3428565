"""How ``fastssl train jigsaw`` runs jigsaw puzzles: 3 x 3 tiles, of 8 pixels where the images have 32."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import Jigsaw
from fastssl.train.recipes._images import FolderSettings, one_view
from fastssl.train.recipes._pretext import draw, part_encoder, pretext_recipe
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class JigsawSettings(FolderSettings):
    method: str = "jigsaw"
    epochs: int = 10
    batch_size: int = 64
    lr: LearningRate = 2e-3
    min_scale: float = 1.0  # resampled pixels would tell by their blur where in the crop they lie
    num_permutations: Annotated[int, Option("permutations that a puzzle may have", least=2, most=362880)] = 24
    puzzles: Annotated[int, Option("puzzles of each image in a step", least=1)] = 4


def build(config: JigsawSettings, data: "ImageData") -> Jigsaw:
    """The encoder is made for tiles and sees nothing else."""
    size = max(2, data.image_size // 3 * 64 // 75)
    encoder = part_encoder(config, data, size, whole=False)
    return Jigsaw(encoder, num_permutations=config.num_permutations, tile_size=size, puzzles=config.puzzles)


RECIPE = pretext_recipe(JigsawSettings, build, ("puzzles", "test puzzles solved"), augment=one_view, draw=draw, encoder="")
