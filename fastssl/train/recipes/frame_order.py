"""How ``fastssl train frame_order`` learns from the order of frames."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import Tensor

from fastssl.methods import FrameOrder
from fastssl.train.recipes._clips import ClipSettings, clip_recipe, encoder
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.clips import ClipData


@dataclass(frozen=True, kw_only=True)
class FrameOrderSettings(ClipSettings):
    method: str = "frame_order"
    epochs: int = 12
    knn_every: int = 4
    lr: LearningRate = 2e-3
    task: Annotated[
        str,
        Option(
            "verification: are three frames in order; direction: do five run forwards; order: in which of 12 orders are four",
            choices=("verification", "direction", "order"),
        ),
    ] = "verification"


def build(config: FrameOrderSettings, data: "ClipData") -> FrameOrder:
    return FrameOrder(encoder(config, data), task=config.task)


def right(method: FrameOrder, clips: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
    """``right``: the share of the arrangements of test clips whose class is told; each class is there equally often."""
    total, count = 0.0, 0
    for frames, *_ in clips:
        told = method.answers(frames).argmax(2) == method.classes
        total, count = total + told.sum().item(), count + told.numel()
    return {"right": total / count} if count else {}


RECIPE = clip_recipe(
    FrameOrderSettings,
    build,
    right,
    {"right": ("right", "answers that are right", ".3f")},
    loss="cross-entropy",
)
