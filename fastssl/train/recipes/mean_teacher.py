"""How ``fastssl train mean_teacher`` runs mean teacher: training knows the label of a few images of each class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import MeanTeacher
from fastssl.train.recipes._few_labels import FewLabelSettings, few_label_recipe
from fastssl.train.recipes._images import backbone, total_steps, views_and_labels
from fastssl.train.recipes._options import FinalMomentum, Momentum
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class MeanTeacherSettings(FewLabelSettings):
    method: str = "mean_teacher"
    momentum: Momentum = 0.99
    final_momentum: FinalMomentum = 0.999
    consistency_weight: Annotated[float, Option("weight of the agreement with the teacher, after its ramp", least=0)] = 100.0


def build(config: MeanTeacherSettings, data: "ImageData") -> MeanTeacher:
    return MeanTeacher(
        backbone(config, data),
        len(data.class_names),
        consistency_weight=config.consistency_weight,
        momentum=config.momentum,
        final_momentum=config.final_momentum,
        total_steps=total_steps(config, data),
    )


RECIPE = few_label_recipe(
    MeanTeacherSettings, build, arguments=views_and_labels, loss="mean teacher", encoder="teacher.module.backbone"
)
