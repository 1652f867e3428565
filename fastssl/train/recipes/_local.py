"""What the recipes of DIM and AMDIM share: the layers whose maps are compared, and the share of places that find their image."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from fastssl.train import UsageError
from fastssl.train.recipes._images import WATCH, ViewSettings, with_image_scores
from fastssl.train.recipes._options import ProjectionDim
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.data import ImageData

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LocalSettings(ViewSettings):
    """Of the methods that compare images with places of inner maps."""

    batch_size: int = 64
    lr: LearningRate = 2e-3
    projection_dim: ProjectionDim = 128


def known_layers(config: LocalSettings, option: str, given: T | None, of_conv: T) -> T:
    """What the option gave, or the layers of ``conv``; those of another encoder have no default."""
    if given is None and config.backbone != "conv":
        raise UsageError(f"--{option}: --backbone {config.backbone} needs names of its layers, as its named_modules() has them")
    return of_conv if given is None else given


def found_places(method: nn.Module, data: "ImageData", *, mirrored: bool = False, **where: Any) -> dict[str, float]:
    """The share of places that find their image, or that the mirrored image finds."""
    from fastssl.train.local_features import found_images

    return found_images(method, data, mirrored=mirrored, **where)


WATCH_PLACES = {**WATCH, "found": ("found", "places that find their image, of 100", ".3f")}
PLACES, MIRRORED = with_image_scores(found_places), with_image_scores(partial(found_places, mirrored=True))
