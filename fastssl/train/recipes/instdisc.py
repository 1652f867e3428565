"""How ``fastssl train instdisc`` runs instance discrimination: the bank has a row for each training image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastssl.methods import InstDisc
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe, load_images
from fastssl.train.recipes._options import ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class InstDiscSettings(ViewSettings):
    method: str = "instdisc"
    epochs: int = 12
    temperature: Temperature = 0.1
    projection_dim: ProjectionDim = 128


def load_indexed(config: InstDiscSettings) -> "ImageData":
    """Images whose training batches also say which samples they hold."""
    data = load_images(config)
    data.train.gives_index = True
    return data


def build(config: InstDiscSettings, data: "ImageData") -> InstDisc:
    encoder = backbone(config, data)
    return InstDisc(encoder, len(data.train), projection_dim=config.projection_dim, temperature=config.temperature)


def view_and_index(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return module.views.one(batch[0]), batch[2]


def fill_bank(module: Any) -> None:
    """Before the first epoch the bank gets the embeddings of the untrained encoder."""
    from fastssl.train.augment import as_float
    from fastssl.train.data import batches
    from fastssl.train.evaluate import centre

    for images, _, index in batches(module.data.train, module.config.batch_size, workers=module.workers):
        if len(images) > 1:
            whole = centre(as_float(images.to(module.device)), module.data.image_size)
            module.method.fill_bank(whole, index.to(module.device))


RECIPE = image_recipe(
    InstDiscSettings,
    build,
    load=load_indexed,
    arguments=view_and_index,
    prepare=fill_bank,
    loss="instance discrimination",
    negatives="the bank, which is the same in all processes",
)
