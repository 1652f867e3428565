"""How ``fastssl train ijepa`` runs I-JEPA with a light predictor."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from fastssl.methods import IJEPA
from fastssl.train import UsageError
from fastssl.train.recipes._images import (
    WATCH,
    PatchSettings,
    image_recipe,
    one_view,
    single_view,
    total_steps,
    with_image_scores,
)
from fastssl.train.recipes._masked import PIXEL_MEAN, PIXEL_STD, Transformer, refused_in_options, transformer
from fastssl.train.recipes._options import FinalMomentum, Momentum
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class IJEPASettings(PatchSettings):
    method: str = "ijepa"
    backbone: Transformer = "vit"
    epochs: int = 4
    batch_size: int = 64
    lr: LearningRate = 1e-3
    knn_every: int = 2
    min_scale: float = 0.5
    patch_size: Annotated[
        int | None, Option("side in pixels of the patches of --backbone vit", least=1, only_with=("backbone", "vit"))
    ] = 8
    momentum: Momentum = 0.99
    final_momentum: FinalMomentum = 1.0
    num_targets: Annotated[int, Option("blocks of an image that are predicted", least=1)] = 4
    predictor_dim: Annotated[int, Option("width of the predictor", least=4)] = 64
    predictor_depth: Annotated[int, Option("blocks of the predictor", least=1)] = 2


def build(config: IJEPASettings, data: "ImageData") -> IJEPA:
    if config.backbone != "vit" and config.patch_size == 8:
        config = replace(config, patch_size=None)  # the default: other transformers have theirs in their name
    if config.predictor_dim % 4:
        raise UsageError(f"--predictor-dim {config.predictor_dim}: must be a multiple of 4, the predictor's heads")
    return refused_in_options(
        IJEPA,
        transformer(config, data, positions="learned"),
        predictor_dim=config.predictor_dim,
        predictor_depth=config.predictor_depth,
        predictor_heads=4,
        blocks={"num_targets": config.num_targets},
        momentum=config.momentum,
        final_momentum=config.final_momentum,
        total_steps=total_steps(config, data),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )


def found(method: IJEPA, data: "ImageData", **where: Any) -> dict[str, float]:
    """The share of hidden patches of test images that predictions find."""
    from fastssl.train.latents import found_patches

    return found_patches(method, data, **where)


RECIPE = image_recipe(
    IJEPASettings,
    build,
    augment=one_view,
    arguments=single_view,
    monitor=with_image_scores(found),
    watch={**WATCH, "found": ("found", "hidden patches found of 100", ".3f")},
    loss="I-JEPA",
    encoder="teacher.module",
)
