"""How ``fastssl train moco`` runs MoCo v1 and v2, with a queue of half of the training images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor

from fastssl.methods import MoCo
from fastssl.train import UsageError
from fastssl.train.recipes._images import ViewSettings, backbone, half_of_images, image_recipe
from fastssl.train.recipes._options import ProjectionDim, QueueSize, Temperature
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class MoCoSettings(ViewSettings):
    method: str = "moco"
    temperature: Temperature = 0.2
    hidden_dim: Annotated[
        int | None,
        Option("hidden width of the projection head", least=1, default="the encoder's width", only_with=("head", "mlp")),
    ] = None
    projection_dim: ProjectionDim = 128
    queue_size: QueueSize = None
    head: Annotated[str, Option("mlp (two layers, v2), or linear (v1)", choices=("mlp", "linear"))] = "mlp"
    momentum: Annotated[float, Option("share of the teacher that a step keeps", above=0, most=1)] = 0.99
    bn_splits: Annotated[
        int, Option("parts of the batch that batch normalisation sees apart; keys are shuffled over them", least=1)
    ] = 1
    symmetric: Annotated[bool, Option("contrast both views with the keys of the other")] = False


def build(config: MoCoSettings, data: "ImageData") -> MoCo:
    if config.batch_size < 2 * config.bn_splits:
        raise UsageError(f"--bn-splits {config.bn_splits}: needs --batch-size {2 * config.bn_splits} at least")
    return MoCo(
        backbone(config, data),
        mlp=config.head == "mlp",
        queue_size=config.queue_size or half_of_images(data),
        bn_splits=config.bn_splits,
        symmetric=config.symmetric,
        momentum=config.momentum,
        temperature=config.temperature,
        hidden_dim=config.hidden_dim,
        projection_dim=config.projection_dim,
    )


def view_pair_in_parts(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two views of each image. A batch that damaged files cut short is seen in fewer parts, so that each part has two images."""
    module.method.bn_splits = min(module.config.bn_splits, len(batch[0]) // 2)
    return module.views(batch[0])


RECIPE = image_recipe(
    MoCoSettings,
    build,
    arguments=view_pair_in_parts,
    loss="MoCo",
    negatives="the queue takes the keys of all processes",
)
