"""How ``fastssl train mae`` runs a masked autoencoder with a light decoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastssl.methods import MAE
from fastssl.train import UsageError
from fastssl.train.recipes._images import PatchSettings
from fastssl.train.recipes._masked import PIXEL_MEAN, PIXEL_STD, Transformer, masked_recipe, refused_in_options, transformer
from fastssl.train.recipes._options import MaskRatio
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


@dataclass(frozen=True, kw_only=True)
class MAESettings(PatchSettings):
    method: str = "mae"
    backbone: Transformer = "vit"
    epochs: int = 12
    batch_size: int = 64
    lr: LearningRate = 1.5e-3
    knn_every: int = 4
    min_scale: float = 0.8
    mask_ratio: MaskRatio = 0.75
    norm_pix_loss: Annotated[
        bool, Option("compare with pixels normalised patch by patch; the error of removed patches is then not shown")
    ] = False
    decoder_dim: Annotated[int, Option("width of the decoder", least=4)] = 64
    decoder_depth: Annotated[int, Option("blocks of the decoder", least=0)] = 2


def build(config: MAESettings, data: "ImageData") -> MAE:
    if config.decoder_dim % 4:
        raise UsageError(f"--decoder-dim {config.decoder_dim}: must be a multiple of 4, the decoder's heads")
    return refused_in_options(
        MAE,
        transformer(config, data),
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        decoder_dim=config.decoder_dim,
        decoder_depth=config.decoder_depth,
        decoder_heads=4,
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )


RECIPE = masked_recipe(MAESettings, build, loss="MAE")
