"""How ``fastssl train entropy_minimization`` runs entropy minimisation: training knows the label of a few images of each class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import EntropyMinimization
from fastssl.train.recipes._few_labels import FewLabelSettings, few_label_recipe
from fastssl.train.recipes._images import backbone
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class EntropyMinimizationSettings(FewLabelSettings):
    method: str = "entropy_minimization"
    entropy_weight: Annotated[float, Option("weight of the mean entropy of the classifier's probabilities", least=0)] = 0.1


def build(config: EntropyMinimizationSettings, data: "ImageData") -> EntropyMinimization:
    return EntropyMinimization(backbone(config, data), len(data.class_names), entropy_weight=config.entropy_weight)


RECIPE = few_label_recipe(EntropyMinimizationSettings, build, loss="entropy minimisation")
