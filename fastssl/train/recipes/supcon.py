"""How ``fastssl train supcon`` runs SupCon: the classes of the images are its keys."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastssl.methods import SupCon
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe, load_labelled, views_and_labels
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SupConSettings(ViewSettings):
    method: str = "supcon"
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128


def build(config: SupConSettings, data: "ImageData") -> SupCon:
    return SupCon(
        backbone(config, data),
        temperature=config.temperature,
        negatives=config.negatives,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
    )


RECIPE = image_recipe(SupConSettings, build, load=load_labelled, arguments=views_and_labels, loss="supervised contrastive")
