"""How ``fastssl train exemplar`` runs exemplar networks: each training image is a class, and its views are strongly augmented."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fastssl.methods import Exemplar
from fastssl.train.recipes._images import ViewSettings, backbone, image_scores, load_indexed, two_views, view_and_index
from fastssl.train.recipes._pretext import pretext_recipe
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class ExemplarSettings(ViewSettings):
    method: str = "exemplar"
    epochs: int = 10
    batch_size: int = 64
    lr: LearningRate = 2e-3


def build(config: ExemplarSettings, data: "ImageData") -> Exemplar:
    return Exemplar(backbone(config, data), len(data.train))


def exemplar_scores(
    method: Exemplar,
    data: "ImageData",
    config: ExemplarSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """``image_scores``, and the share of fresh views of training images that are named."""
    from fastssl.train.pretext import named_share

    scores = image_scores(method, data, config, device=device, workers=workers, most=most, full=full)
    if data.name != config.data:  # its classes are other images
        return scores
    return scores | named_share(method, data, two_views(config, data), device=device, workers=workers)


RECIPE = pretext_recipe(
    ExemplarSettings,
    build,
    ("named", "fresh views of training images named"),
    load=load_indexed,
    arguments=view_and_index,
    monitor=exemplar_scores,
)
