"""How ``fastssl train image_gpt`` runs ImageGPT: its own causal transformer over the pixels of small images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastssl.methods import ImageGPT
from fastssl.train import UsageError
from fastssl.train.recipes._images import WATCH, FolderSettings, image_recipe, one_view, single_view, with_image_scores
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class ImageGPTSettings(FolderSettings):
    method: str = "image_gpt"
    backbone: Annotated[str, Option("the method's own transformer, which sees pixels", choices=("gpt",))] = "gpt"
    image_size: Annotated[int, Option("side of the images in pixels; its square is the number of tokens", least=8, most=64)] = 12
    epochs: int = 3
    batch_size: int = 64
    lr: LearningRate = 2e-3
    min_scale: float = 0.5
    palette_size: Annotated[int, Option("colours of the palette", least=2)] = 32
    width: Annotated[int, Option("width of the transformer", least=1)] = 48
    depth: Annotated[int, Option("blocks of the transformer", least=1)] = 3
    heads: Annotated[int, Option("heads of its attention", least=1)] = 3
    feature_layer: Annotated[int | None, Option("the features are read before this block", least=0, default="the middle one")] = (
        None
    )


def build(config: ImageGPTSettings, data: "ImageData") -> ImageGPT:
    if config.feature_layer is not None and config.feature_layer >= config.depth:
        raise UsageError(f"--feature-layer: must be below --depth, {config.depth}, got {config.feature_layer}")
    return refused_in_options(
        ImageGPT,
        data.image_size,
        config.palette_size,
        channels=data.channels,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        layer=config.feature_layer,
    )


def costs(method: ImageGPT, data: "ImageData", **where: Any) -> dict[str, float]:
    """The bits that a pixel of test images costs."""
    from fastssl.train.pixels import pixel_costs

    return pixel_costs(method, data, **where)


def fit_palette(module: Any) -> None:
    """Before the first epoch: the palette."""
    from fastssl.train.pixels import fit_palette

    fit_palette(module)


def draw(method: ImageGPT, data: "ImageData", folder: Path, **where: Any) -> Path | None:
    """Draws ``completions.png`` -> its path, or None where no image can be read."""
    from fastssl.train.pixels import draw_completions

    return draw_completions(method, data, folder / "completions.png", **where)


RECIPE = image_recipe(
    ImageGPTSettings,
    build,
    augment=one_view,
    arguments=single_view,
    monitor=with_image_scores(costs),
    prepare=fit_palette,
    watch={
        **WATCH,
        "bits": ("bits", "bits a pixel", ".3f"),
        "unigram": ("unigram", "the same by frequency", ".3f"),
        "copy": ("copy", "the same, neighbour copied", ".3f"),
    },
    draw=draw,
    loss="next pixel",
    encoder="",
)
