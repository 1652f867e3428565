"""How ``fastssl train swav`` runs SwAV."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import SwAV
from fastssl.train import UsageError
from fastssl.train.recipes._crops import CropSettings, crop_backbone, crop_recipe
from fastssl.train.recipes._images import total_steps
from fastssl.train.recipes._options import Frozen, HiddenDim, ProjectionDim, Temperature
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class SwAVSettings(CropSettings):
    method: str = "swav"
    prototypes: Annotated[int, Option("number of prototypes", least=2)] = 300
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128
    temperature: Temperature = 0.1
    epsilon: Annotated[float, Option("what divides the scores that Sinkhorn assigns by", above=0)] = 0.05
    iterations: Annotated[int, Option("passes of Sinkhorn's algorithm", least=1)] = 3
    queue_size: Annotated[int, Option("older embeddings that the assignments are balanced with, 0 for none", least=0)] = 0
    queue_start: Annotated[
        float, Option("share of the training after which the queue is used", least=0, most=1, unused_at=("queue_size", 0))
    ] = 0.15
    frozen: Frozen = 0.03


def build(config: SwAVSettings, data: "ImageData") -> SwAV:
    return SwAV(
        crop_backbone(config, data),
        prototypes=config.prototypes,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        epsilon=config.epsilon,
        iterations=config.iterations,
        queue_size=config.queue_size,
        queue_start=config.queue_start,
        frozen=config.frozen,
        total_steps=total_steps(config, data),
    )


def refuse_idle_queue(config: SwAVSettings, data: "ImageData") -> None:
    """Raises UsageError for a queue that is not full, or not due, before the training ends."""
    steps = total_steps(config, data)
    before = (steps - 1) * config.batch_size  # images that are on the queue in the last step
    if config.queue_size > before:
        raise UsageError(f"--queue-size {config.queue_size}: is never full, with {before} images before the last of {steps} steps")
    if config.queue_size and config.queue_start * steps > steps - 1:
        raise UsageError(f"--queue-start {config.queue_start:g}: the queue is not used, since none of {steps} steps comes after it")


RECIPE = crop_recipe(SwAVSettings, build, loss="SwAV", blur=(0.5, 0.5, 0.5), solarize=0.0, refuse=refuse_idle_queue)
