"""How ``fastssl train relative_position`` runs it: patches of a third of the side, 10 pixels where the images have 32."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import RelativePosition
from fastssl.train import UsageError
from fastssl.train.recipes._images import FolderSettings, one_view
from fastssl.train.recipes._pretext import part_encoder, pretext_recipe
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class RelativePositionSettings(FolderSettings):
    method: str = "relative_position"
    epochs: int = 10
    batch_size: int = 64
    lr: LearningRate = 2e-3
    min_scale: float = 1.0  # resampled pixels would tell by their blur where in the crop they lie
    pairs: Annotated[int, Option("pairs of patches of each image in a step", least=1)] = 4
    chroma: Annotated[
        str | None,
        Option(
            "how the fringes of a lens are kept out of the patches: project, green against magenta is removed; drop, all channels "
            "but one become noise; none",
            choices=("project", "drop", "none"),
            default="project, or none where there are not 3 channels",
        ),
    ] = None


def build(config: RelativePositionSettings, data: "ImageData") -> RelativePosition:
    """Two patches, their gap and their jitter take at most 26 of 32 pixels, so that pairs lie at many places."""
    chroma = config.chroma or ("project" if data.channels == 3 else "none")
    if chroma != "none" and data.channels != 3:
        raise UsageError(f"--chroma {chroma}: must be none where the images have not 3 channels, here {data.channels}")
    size = max(2, data.image_size // 3)
    encoder = part_encoder(config, data, size, whole=True)
    return RelativePosition(encoder, patch_size=size, pairs=config.pairs, chroma=chroma)


RECIPE = pretext_recipe(RelativePositionSettings, build, ("positions", "test pairs placed, chance 0.125"), augment=one_view)
