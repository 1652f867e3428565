"""How ``fastssl train rotnet`` runs rotation prediction: each step turns its images by all four quarter turns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import RotNet
from fastssl.train.recipes._images import PatchSettings, backbone, one_view
from fastssl.train.recipes._pretext import draw, pretext_recipe
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class RotNetSettings(PatchSettings):
    method: str = "rotnet"
    epochs: int = 6
    batch_size: int = 32
    lr: LearningRate = 2e-3
    knn_every: int = 3
    min_scale: float = 0.8


def build(config: RotNetSettings, data: "ImageData") -> RotNet:
    return RotNet(backbone(config, data))


RECIPE = pretext_recipe(RotNetSettings, build, ("rotations", "test rotations named, chance 0.25"), augment=one_view, draw=draw)
