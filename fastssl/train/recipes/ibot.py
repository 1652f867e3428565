"""How ``fastssl train ibot`` runs iBOT as DINOv2 trains it: DINO, its form for masked patches, and KoLeo."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import nn

from fastssl.methods import IBOT
from fastssl.train.recipes._crops import DistillationSettings, crop_backbone, crop_recipe, distillation
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.recipes._options import Centering
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData

STRIDES = (2, 2, 2, 1)  # of the built-in convolutional encoder: a place of its maps stands for 8 x 8 pixels


@dataclass(frozen=True, kw_only=True)
class IBOTSettings(DistillationSettings):
    method: str = "ibot"
    backbone: Annotated[str, Option("conv, vit, or a model of timm with tokens or maps where installed (also timm:NAME)")] = "conv"
    centering: Centering = "sinkhorn"
    mask_share: Annotated[float, Option("share of the large crops that are masked", above=0, most=1)] = 0.5
    mask_scale: Annotated[float, Option("largest share of the patches that is masked; the smallest is 0.1", least=0.1, most=1)] = (
        0.5
    )
    patch_weight: Annotated[float, Option("weight of the loss of masked patches", least=0)] = 1.0
    koleo_weight: Annotated[float, Option("weight of KoLeo, which pushes embeddings apart", least=0)] = 0.1
    separate_heads: Annotated[bool, Option("give the patches a head of their own", unused_at=("patch_weight", 0))] = False


def build(config: IBOTSettings, data: "ImageData") -> IBOT:
    return refused_in_options(
        IBOT,
        encoder(config, data),
        image_size=data.image_size,
        centering=config.centering,
        mask_share=config.mask_share,
        mask_scale=(0.1, config.mask_scale),
        patch_weight=config.patch_weight,
        koleo_weight=config.koleo_weight,
        separate_heads=config.separate_heads,
        **distillation(config, data),
    )


def encoder(config: IBOTSettings, data: "ImageData") -> nn.Module:
    """The encoder that ``--backbone`` names. The built-in convolutional one has maps of twice the side here."""
    from fastssl.train.backbones import ConvEncoder

    return ConvEncoder(strides=STRIDES, channels=data.channels) if config.backbone == "conv" else crop_backbone(config, data)


RECIPE = crop_recipe(IBOTSettings, build, loss="iBOT", blur=(1.0, 0.1, 0.5), solarize=0.2)
