"""What the recipes share whose training knows the label of a few images of each class: settings, data, the classifier's score."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import SCORES, ViewSettings, image_recipe, image_scores, load_labelled
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class FewLabelSettings(ViewSettings):
    """Of every method that knows a few labels."""

    labels_per_class: Annotated[int, Option("training images of a class whose label may be used", least=1)] = 10


def load_few_labels(config: FewLabelSettings) -> "ImageData":
    """Images of which ``labels_per_class`` of each class have a label in training; evaluation has them all."""
    from fastssl.train.data import FewLabels

    data = load_labelled(config)
    return replace(data, train=FewLabels(data.train, config.labels_per_class, config.seed))


def view_and_labels(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """One view of each image, and its label."""
    return module.views.one(batch[0]), batch[1]


def classifier_scores(
    method: Any,
    data: "ImageData",
    config: FewLabelSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """``image_scores`` with all labels, and the accuracy of the method's classifier on test images of the data it knows."""
    from fastssl.train.data import FewLabels
    from fastssl.train.evaluate import embed, evaluating

    assert isinstance(data.train, FewLabels)
    whole = replace(data, train=data.train.whole)
    scores = image_scores(method, whole, config, device=device, workers=workers, most=most, full=full)
    if data.name != config.data:
        return scores
    with evaluating(method):
        logits, labels = embed(Classes(method), data.test, data.image_size, device=device, workers=workers)
    return scores | ({"accuracy": (logits.argmax(1) == labels).float().mean().item()} if len(labels) else {})


class Classes(nn.Module):
    """A method's classifier as an encoder: images -> logits."""

    def __init__(self, method: Any):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return self.method.classify(images)


def few_label_recipe(settings: type[FewLabelSettings], build: Callable[[Any, Any], nn.Module], **more: Any) -> Recipe:
    """The recipe of a method that knows a few labels. ``more`` holds the fields of ``Recipe`` that differ."""
    usual: dict[str, Any] = {
        "load": load_few_labels,
        "arguments": view_and_labels,
        "monitor": classifier_scores,
        "scores": {**SCORES, "accuracy": ("accuracy", "its classifier")},
    }
    return image_recipe(settings, build, **(usual | more))
