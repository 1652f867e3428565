"""What the recipes of image methods share: settings, data, views, encoder, and scores on ``method.embed(images)``.

The scores are a weighted kNN and a linear probe. Data, augmentation and evaluation are imported when they are used, because
``fastssl train --help`` needs none of them.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._options import PatchSize
from fastssl.train.settings import Option, TrainConfig

if TYPE_CHECKING:
    from fastssl.train.data import ImageData

MOST_PIXELS = 8192  # of a side


def low_and_high(text: str) -> tuple[float, float]:
    """An argparse type: two numbers, the first one smaller."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be LOW,HIGH, such as 0,4095, got '{text}'") from None
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH, got '{text}'")
    return low, high


@dataclass(frozen=True, kw_only=True)
class ImageSettings(TrainConfig):
    """Of every method that learns from images."""

    backbone: Annotated[
        str, Option("conv, vit, or a timm or torchvision model where installed (also timm:NAME, torchvision:NAME)")
    ] = "conv"
    image_size: Annotated[
        int | None,
        Option(f"side of the views in pixels, at most {MOST_PIXELS}", least=8, most=MOST_PIXELS, default="32; 64 for folders"),
    ] = None
    min_scale: Annotated[float, Option("smallest share of an image that a crop keeps", above=0, most=1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class VotedSettings(ImageSettings):
    """Of the methods with a kNN vote as their score."""

    knn_k: Annotated[int, Option("neighbours that vote", least=1)] = 20
    knn_t: Annotated[float, Option("temperature of the kNN vote", above=0)] = 0.1


@dataclass(frozen=True, kw_only=True)
class FolderSettings(VotedSettings):
    """Of those among them that also take folders of images."""

    channels: Annotated[int, Option("bands of a picture that the encoder takes: 3, 1 for grey, or all of a file's", least=1)] = 3
    pixel_range: Annotated[
        tuple[float, float] | None,
        Option(
            "pixels that become 0 and 1, in folders of files with more than 8 bits; --pixel-range=-1000,3000 where LOW is negative",
            default="0,65535 for uint16, 0,1 for floats",
            parse=low_and_high,
            metavar="LOW,HIGH",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PatchSettings(FolderSettings):
    """Of those among them whose encoder may be the built-in transformer."""

    patch_size: PatchSize = None


@dataclass(frozen=True, kw_only=True)
class ViewSettings(PatchSettings):
    """Of the methods that learn from views with jittered colours."""

    jitter: Annotated[float, Option("strength of the colour jitter, 0 for none", least=0)] = 0.5


def load_images(config: FolderSettings) -> "ImageData":
    from fastssl.train.data import load_data

    return load_data(config.data, config.image_size, config.channels, config.pixel_range)


def load_indexed(config: FolderSettings) -> "ImageData":
    """Images whose training batches also say which samples they hold."""
    data = load_images(config)
    data.train.gives_index = True
    return data


def load_labelled(config: FolderSettings) -> "ImageData":
    """Images of two classes at least, for a method that learns from them."""
    data = load_images(config)
    if len(data.train.labels.unique()) < 2:
        one = f"all {len(data.train)} training images are of one; a class is a subfolder with its images"
        raise UsageError(f"--data {config.data}: {config.method} learns from classes, and {one}")
    return data


def two_views(config: ViewSettings, data: "ImageData") -> nn.Module:
    from fastssl.train.augment import TwoViews

    return TwoViews(
        data.image_size,
        min_scale=config.min_scale,
        strength=config.jitter,
        mirror=data.mirror,
        colour=data.colour and data.channels == 3,
        hue=data.hue,
    )


def one_view(config: ImageSettings, data: Any) -> nn.Module:
    """A crop, here also mirrored, as CLIP's augmentation; colours stay."""
    from fastssl.train.augment import TwoViews

    return TwoViews(data.image_size, min_scale=config.min_scale, strength=0.0, mirror=data.mirror, colour=False)


def view_pair(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two views of each image."""
    return module.views(batch[0])


def single_view(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor]:
    """One view of each image."""
    return (module.views.one(batch[0]),)


def view_and_index(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """One view of each image, and which sample it is."""
    return module.views.one(batch[0]), batch[2]


def views_and_labels(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of each image, and its label."""
    return *module.views(batch[0]), batch[1]


def backbone(config: ImageSettings, data: "ImageData") -> nn.Module:
    """The encoder that ``--backbone`` names, for the images of ``data``."""
    from fastssl.train.backbones import build_backbone

    return build_backbone(config.backbone, data.image_size, data.channels, patch_size=config.patch_size)


def half_of_images(data: "ImageData") -> int:
    """The size of a queue: half of the training images, so that few keys are another view of an image that comes again."""
    return min(65536, max(1, len(data.train) // 2))


def total_steps(config: TrainConfig, data: "ImageData") -> int:
    """Steps of the optimizer in one process, for the schedule of a teacher; the training loop corrects it for several."""
    return config.epochs * max(1, len(data.train) // config.batch_size)


def image_scores(
    method: nn.Module,
    data: "ImageData",
    config: VotedSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """The accuracy of a kNN vote on test images, and the collapse watch of their embeddings.

    Without labels only the watch, without test images that of the training images. Classes of which no file can be read do not
    count.

    Args:
        most: images of each half that are embedded; None for all.
        full: also the accuracy of a linear probe, which is slow.
    """
    from fastssl.train.data import limited
    from fastssl.train.evaluate import embed

    halves = [half if most is None else limited(half, most) for half in (data.train, data.test) if len(half)]
    kept = halves if data.labelled else halves[-1:]
    features = [embed(method, half, data.image_size, device=device, workers=workers) for half in kept]
    return scores_of_features(features, data, config, full)


def scores_of_features(features: Sequence[tuple[Tensor, Tensor]], data: Any, config: Any, full: bool) -> dict[str, float]:
    """The scores of the features (N, D) and labels (N,) of a training and a test half, or of one half without classes.

    Args:
        features: of each half.
        data: with ``labelled`` and ``class_names``.
        config: with ``knn_k`` and ``knn_t``.
        full: also the accuracy of a linear probe, which is slow.
    """
    from fastssl.train.evaluate import collapse_watch, knn_accuracy, linear_probe_accuracy

    *train, test = features
    watch = collapse_watch(test[0])
    if not (data.labelled and len(train[0][1].unique()) > 1 and len(test[1])):
        return watch
    knn = knn_accuracy(train[0], test, len(data.class_names), config.knn_k, config.knn_t)
    return {"knn": knn} | ({"probe": linear_probe_accuracy(train[0], test)} if full else {}) | watch


def with_image_scores(own: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """A recipe's ``monitor``: ``image_scores``, and the scores of ``own`` (method, data, *, device, workers, most)."""

    def scores(method: nn.Module, data: "ImageData", config: FolderSettings, *, full: bool, **where: Any) -> dict[str, float]:
        return image_scores(method, data, config, full=full, **where) | own(method, data, **where)

    return scores


def image_points(
    method: nn.Module, data: "ImageData", *, device: torch.device | str, workers: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """features (N, D), labels (N,) of the test images (of the training images where there are none), and the class names."""
    from fastssl.train.evaluate import embed

    half = data.test if len(data.test) else data.train
    return *embed(method, half, data.image_size, device=device, workers=workers), data.class_names


SCORES = {"knn": ("kNN", "weighted kNN, k={config.knn_k}"), "probe": ("probe", "linear probe")}
WATCH = {"std": ("std", "spread, 0 is collapse", ".3f"), "rank": ("rank", "effective rank", ".1f")}


def image_recipe(settings: type[FolderSettings], build: Callable[[Any, Any], nn.Module], **more: Any) -> Recipe:
    """The recipe of a method that contrasts two views of an image. ``more`` holds the fields of ``Recipe`` that differ."""
    usual: dict[str, Any] = {
        "load": load_images,
        "augment": two_views,
        "arguments": view_pair,
        "monitor": image_scores,
        "points": image_points,
        "scores": SCORES,
        "watch": WATCH,
        "encoder": "backbone",
    }
    return Recipe(settings=settings, build=build, **(usual | more))
