"""How ``fastssl train fixmatch`` runs FixMatch: training knows the label of a few images of each class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor, nn

from fastssl.methods import FixMatch
from fastssl.train.recipes._few_labels import FewLabelSettings, few_label_recipe
from fastssl.train.recipes._images import backbone
from fastssl.train.recipes._options import Threshold
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class FixMatchSettings(FewLabelSettings):
    method: str = "fixmatch"
    threshold: Threshold = 0.95
    unlabelled_weight: Annotated[float, Option("weight of the strong views", least=0)] = 1.0


def build(config: FixMatchSettings, data: "ImageData") -> FixMatch:
    return FixMatch(
        backbone(config, data),
        len(data.class_names),
        threshold=config.threshold,
        unlabelled_weight=config.unlabelled_weight,
    )


def weak_and_strong(config: FixMatchSettings, data: "ImageData") -> nn.Module:
    from fastssl.train.augment import WeakAndStrong

    colour = data.colour and data.channels == 3
    how: dict[str, Any] = {"min_scale": config.min_scale, "strength": config.jitter, "colour": colour, "hue": data.hue}
    return WeakAndStrong(data.image_size, mirror=data.mirror, **how)


def weak_strong_labels(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """A weak and a strong view of each image, and its label."""
    return *module.views(batch[0]), batch[1]


RECIPE = few_label_recipe(FixMatchSettings, build, augment=weak_and_strong, arguments=weak_strong_labels, loss="FixMatch")
