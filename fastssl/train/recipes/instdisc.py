"""How ``fastssl train instdisc`` runs instance discrimination: the bank has a row for each training image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastssl.methods import InstDisc
from fastssl.train.recipes._images import ViewSettings, backbone, image_recipe, load_indexed, view_and_index
from fastssl.train.recipes._options import ProjectionDim, Temperature

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class InstDiscSettings(ViewSettings):
    method: str = "instdisc"
    epochs: int = 12
    temperature: Temperature = 0.1
    projection_dim: ProjectionDim = 128


def build(config: InstDiscSettings, data: "ImageData") -> InstDisc:
    encoder = backbone(config, data)
    return InstDisc(encoder, len(data.train), projection_dim=config.projection_dim, temperature=config.temperature)


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
