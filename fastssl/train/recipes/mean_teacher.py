"""How ``fastssl train mean_teacher`` runs mean teacher: training knows the label of a few images of each class."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import torch

from fastssl.methods import MeanTeacher
from fastssl.train.recipes._images import (
    SCORES,
    ViewSettings,
    backbone,
    image_recipe,
    image_scores,
    load_labelled,
    total_steps,
    views_and_labels,
)
from fastssl.train.recipes._options import FinalMomentum, Momentum
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class MeanTeacherSettings(ViewSettings):
    method: str = "mean_teacher"
    momentum: Momentum = 0.99
    final_momentum: FinalMomentum = 0.999
    labels_per_class: Annotated[int, Option("training images of a class whose label may be used", least=1)] = 10
    consistency_weight: Annotated[float, Option("weight of the agreement with the teacher, after its ramp", least=0)] = 100.0


def load_few_labels(config: MeanTeacherSettings) -> "ImageData":
    """Images of which ``labels_per_class`` of each class have a label in training; evaluation has them all."""
    from fastssl.train.data import FewLabels

    data = load_labelled(config)
    return replace(data, train=FewLabels(data.train, config.labels_per_class, config.seed))


def build(config: MeanTeacherSettings, data: "ImageData") -> MeanTeacher:
    return MeanTeacher(
        backbone(config, data),
        len(data.class_names),
        consistency_weight=config.consistency_weight,
        momentum=config.momentum,
        final_momentum=config.final_momentum,
        total_steps=total_steps(config, data),
    )


def classifier_scores(
    method: MeanTeacher,
    data: "ImageData",
    config: MeanTeacherSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """``image_scores`` with all labels, and the accuracy of the teacher's classifier on test images of the data it knows."""
    from fastssl.train.data import FewLabels
    from fastssl.train.evaluate import embed

    assert isinstance(data.train, FewLabels)
    scores = image_scores(
        method, replace(data, train=data.train.whole), config, device=device, workers=workers, most=most, full=full
    )
    logits, labels = embed(method.teacher, data.test, data.image_size, device=device, workers=workers)
    if data.name != config.data or not len(labels):
        return scores
    return scores | {"accuracy": (logits.argmax(1) == labels).float().mean().item()}


RECIPE = image_recipe(
    MeanTeacherSettings,
    build,
    load=load_few_labels,
    arguments=views_and_labels,
    monitor=classifier_scores,
    scores={**SCORES, "accuracy": ("accuracy", "teacher's classifier")},
    loss="mean teacher",
)
