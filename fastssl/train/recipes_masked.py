"""Recipes of the methods that paint what was removed from an image: MAE, SimMIM, and a convolutional autoencoder.

Scored by kNN as the other image methods, and by the error of removed patches beside that of a mean of their neighbours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from fastssl.functional import num_kept
from fastssl.methods import MAE, Inpainting, SimMIM
from fastssl.train import Recipe, TrainConfig, UsageError
from fastssl.train.recipes_image import PIXELS, SIMCLR, backbone, image_scores
from fastssl.train.recipes_text import one_view

IMAGES = ("backbone", "image_size", "patch_size", *PIXELS, "min_scale", "knn_k", "knn_t")
SQUARE = 8  # side in pixels of what inpainting removes
SCALE = {"pixel_mean": 0.5, "pixel_std": 0.25}  # on [0, 1] itself MAE paints nothing but the mean of the image for many epochs


def refused_in_options(make: Callable[..., nn.Module], *arguments, **options) -> nn.Module:
    """``make(...)``, whose ``ValueError: method: argument ...`` is said of the option with the argument's name."""
    try:
        return make(*arguments, **options)
    except ValueError as error:
        name = str(error).partition(": ")[2].partition(" ")[0].replace("_", "-")
        raise UsageError(f"--{name}: {error}") from None


def transformer(config: TrainConfig, data) -> nn.Module:
    """The built-in transformer with fixed positions, as MAE's and SimMIM's encoders: learned ones cost it the first epochs."""
    from fastssl.train.backbones import build_vit

    encoder = backbone(config, data)
    sine = {"channels": data.channels, "positions": "sine"}
    encoder = build_vit(data.image_size, config.patch_size, **sine) if config.backbone == "vit" else encoder
    if tuple(getattr(getattr(encoder, "patch_embed", None), "grid_size", ())) == (1, 1):
        option = f"--image-size {data.image_size}" if config.patch_size is None else f"--patch-size {config.patch_size}"
        made = f"makes one patch of an image of {data.image_size} x {data.image_size} pixels"
        raise UsageError(f"{option}: {made}, and {config.method} removes some patches and keeps others")
    return encoder


def mae(config: TrainConfig, data) -> nn.Module:
    if config.decoder_dim % 4:
        raise UsageError(f"--decoder-dim {config.decoder_dim}: must be a multiple of 4, the decoder's heads")
    names = ("mask_ratio", "norm_pix_loss", "decoder_dim", "decoder_depth")
    options = {name: getattr(config, name) for name in names}
    return refused_in_options(MAE, transformer(config, data), decoder_heads=4, **SCALE, **options)


def simmim(config: TrainConfig, data) -> nn.Module:
    """Removes units of two patches, as SimMIM's 32 pixels are, or of one where two do not fit."""
    encoder = transformer(config, data)
    embed = getattr(encoder, "patch_embed", None)
    patch, grid = getattr(embed, "patch_size", (4, 4))[0], getattr(embed, "grid_size", (2, 2))
    size = config.mask_size or fitting_size([patch * side for side in grid], (2 * patch, patch), config.mask_ratio, "mask_ceil")
    return refused_in_options(SimMIM, encoder, mask_ratio=config.mask_ratio, mask_size=size, **SCALE)


def fitting_size(sides: Sequence[int], sizes: Sequence[int], ratio: float, rounding: str = "keep_floor") -> int:
    """The first of ``sizes`` of a removed square that divides the image's sides and of which some are removed and some stay."""
    for size in sizes:
        count = 0 if any(side % size for side in sides) else math.prod(side // size for side in sides)
        if count and 0 < num_kept(count, ratio, rounding) < count:
            return size
    tried = f"no square of {min(sizes)} to {max(sizes)} pixels divides an image of {' x '.join(map(str, sides))}"
    raise UsageError(f"--mask-size: {tried} and leaves and removes some of it at --mask-ratio {ratio:g}")


def inpainting(config: TrainConfig, data) -> nn.Module:
    """Removes squares of ``SQUARE`` pixels, or of the most below that fit."""
    if config.backbone == "conv" and data.image_size % 16:
        raise UsageError(f"--image-size {data.image_size}: must be a multiple of 16 for inpainting with --backbone conv")
    options = {name: getattr(config, name) for name in ("corruption", "mask_ratio", "sigma")}
    size = config.mask_size or SQUARE
    if config.mask_size is None and config.corruption == "blocks":
        size = fitting_size([data.image_size] * 2, range(SQUARE, 0, -1), config.mask_ratio)
    encoder = backbone(config, data)
    return refused_in_options(Inpainting, encoder, data.image_size, channels=data.channels, mask_size=size, **options)


def masked_scores(method: nn.Module, data, config: TrainConfig, *, device, workers: int, most: int | None, full: bool) -> dict:
    """``image_scores`` and the errors of ``reconstruction_errors`` on test images."""
    from fastssl.train.reconstruct import reconstruction_errors

    where = {"device": device, "workers": workers, "most": most}
    return image_scores(method, data, config, **where, full=full) | reconstruction_errors(method, data, **where)


def draw(method: nn.Module, data, folder: Path, *, device) -> Path | None:
    from fastssl.train.reconstruct import draw_reconstruction

    return draw_reconstruction(method, data, folder / "reconstruction.png", device=device)


MAE_ = replace(
    SIMCLR,
    build=mae,
    augment=one_view,
    arguments=lambda module, batch: (module.views.one(batch[0]),),
    monitor=masked_scores,
    watch={
        **SIMCLR.watch,
        "error": ("error", "squared error of removed", ".4f"),
        "fill": ("fill", "the same, mean of neighbours", ".4f"),
    },
    options=(*IMAGES, "mask_ratio", "norm_pix_loss", "decoder_dim", "decoder_depth"),
    defaults={"backbone": "vit", "epochs": 12, "batch_size": 64, "lr": 1.5e-3, "knn_every": 4, "min_scale": 0.8},
    help={"backbone": "vit, or a vision transformer of timm where installed (also timm:NAME)"},
    draw=draw,
    loss="MAE",
)
SIMMIM = replace(
    MAE_,
    build=simmim,
    options=(*IMAGES, "mask_ratio", "mask_size"),
    defaults={**MAE_.defaults, "lr": 1e-3, "epochs": 8, "mask_ratio": 0.6},
    help={**MAE_.help, "mask_size": "side in pixels of the squares that are removed (default: two patches, or one where it fits)"},
    loss="SimMIM",
)
INPAINTING = replace(
    MAE_,
    build=inpainting,
    options=("backbone", "image_size", *PIXELS, "min_scale", "knn_k", "knn_t", "mask_ratio", "mask_size", "corruption", "sigma"),
    defaults={"epochs": 12, "batch_size": 64, "lr": 2e-3, "knn_every": 4, "min_scale": 0.8, "mask_ratio": 0.25},
    help={
        "backbone": "conv, or a convolutional model of timm where installed (also timm:NAME)",
        "mask_size": f"side in pixels of the squares that are removed (default: {SQUARE}, or the most below that fit the image)",
    },
    loss="reconstruction",
)

MASKED_RECIPES: dict[str, Recipe] = {"mae": MAE_, "simmim": SIMMIM, "inpainting": INPAINTING}
