"""How ``fastssl train time_contrastive`` learns that frames near in time are alike, and frames far in time are not."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import Tensor

from fastssl.methods import TimeContrastive
from fastssl.train import UsageError
from fastssl.train.recipes._clips import ClipSettings, clip_recipe, encoder, found_among
from fastssl.train.recipes._options import HiddenDim, Negatives, ProjectionDim, Temperature
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.clips import ClipData


@dataclass(frozen=True, kw_only=True)
class TimeContrastiveSettings(ClipSettings):
    method: str = "time_contrastive"
    epochs: int = 12
    knn_every: int = 4
    lr: LearningRate = 2e-3
    near: Annotated[int, Option("the most frames between an anchor and its positive", least=1)] = 1
    far: Annotated[int, Option("the fewest frames between an anchor and the negative of its clip", least=2)] = 4
    temperature: Temperature = 0.1
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128
    negatives: Negatives = "global"


def build(config: TimeContrastiveSettings, data: "ClipData") -> TimeContrastive:
    if not config.near < config.far < config.frames:
        raise UsageError(f"--far {config.far}: must lie above --near {config.near} and below --frames {config.frames}")
    return TimeContrastive(
        encoder(config, data),
        near=config.near,
        far=config.far,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        negatives=config.negatives,
    )


def found(method: TimeContrastive, clips: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
    """``found``: the share of test clips whose last frame is nearest to the frame before it, among the last and the first frames of
    all test clips."""
    return found_among([method.project(frames[:, [-2, -1, 0]]) for frames, *_ in clips])


RECIPE = clip_recipe(
    TimeContrastiveSettings,
    build,
    found,
    {"found": ("found", "near frames found", ".3f")},
    loss="InfoNCE",
)
