"""How ``fastssl train supcon`` runs SupCon: the classes of the images are its keys, or groups that a CSV file beside them has."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor, nn

from fastssl._ending import first_process, say
from fastssl.methods import SupCon
from fastssl.train import UsageError
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe, load_indexed, load_labelled, two_views
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, Temperature
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SupConSettings(ViewSettings):
    method: str = "supcon"
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128
    group_key: Annotated[
        str | None,
        Option(
            "column of a .csv file in the folder of --data folder:PATH: images with the same cell (patient, volume, region) are "
            "positives, in place of those of the same class",
        ),
    ] = None


def load(config: SupConSettings) -> "ImageData":
    """Images of two classes at least, or with group keys any images."""
    return load_labelled(config) if config.group_key is None else load_indexed(config)


def build(config: SupConSettings, data: "ImageData") -> SupCon:
    return SupCon(
        backbone(config, data),
        temperature=config.temperature,
        negatives=config.negatives,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
    )


def groups_of(config: SupConSettings, data: "ImageData") -> Tensor | None:
    """The groups (N,) int64 of the training images, None without group keys."""
    from fastssl.train.groups import group_codes

    if config.group_key is None:
        return None
    paths = getattr(data.train, "paths", None)
    if paths is None:
        raise UsageError(f"--group-key {config.group_key}: needs --data folder:PATH with a .csv file, got --data {config.data}")
    return group_codes(Path(config.data.removeprefix("folder:")).expanduser(), paths, config.group_key)


def refuse_groups(config: SupConSettings, data: "ImageData") -> None:
    """Raises UsageError for group keys that the images do not have, or of which none has two images; says how many there are."""
    if (groups := groups_of(config, data)) is None:
        return
    sizes = groups.bincount()
    if int(sizes.max()) < 2:
        raise UsageError(f"--group-key {config.group_key}: each of {len(sizes)} groups has one image, so there are no positives")
    if first_process():
        say(f"{len(sizes)} groups by {config.group_key}, of {int(sizes.min())} to {int(sizes.max())} training images")


def views_with_groups(config: SupConSettings, data: "ImageData") -> nn.Module:
    """Two views of an image, and the groups of the training images where there are some."""
    views = two_views(config, data)
    views.register_buffer("groups", groups_of(config, data), persistent=False)
    return views


def views_and_keys(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of each image, and its group or its class."""
    groups = module.views.groups
    return *module.views(batch[0]), batch[1] if groups is None else groups[batch[2]]


RECIPE = image_recipe(
    SupConSettings,
    build,
    load=load,
    augment=views_with_groups,
    arguments=views_and_keys,
    refuse=refuse_groups,
    loss="supervised contrastive",
)
