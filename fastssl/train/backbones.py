"""Encoders by name: built-in ``conv`` and ``vit``, and every timm or torchvision model where those are installed.

An encoder maps images (B, C, S, S) to features (B, D), C = 3 unless it is given; ``num_features`` is D where it is known without
running it.
"""

import difflib
import importlib

import torch
from torch import Tensor, nn

from fastssl.methods import VisionTransformer
from fastssl.train import UsageError

BUILT_IN = ("conv", "vit")


class ConvEncoder(nn.Sequential):
    """Four 3 x 3 convolutions with batch normalisation, then the mean over positions: (B, C, S, S) -> (B, D)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), strides: tuple[int, ...] = (2, 2, 2, 2), *, channels: int = 3):
        layers = []
        for before, width, stride in zip((channels, *widths[:-1]), widths, strides, strict=True):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> maps (B, D, S / 16, S / 16), before the mean."""
        images = images.contiguous(memory_format=torch.channels_last)
        for layer in list(self)[:-2]:
            images = layer(images)
        return images


def _timm_backbone(timm, name: str, image_size: int, channels: int) -> nn.Module:
    """A timm model without its classifier; transformers are made for ``image_size``."""
    try:
        return timm.create_model(name, num_classes=0, in_chans=channels, img_size=image_size)
    except TypeError:  # convolutional models take no img_size
        return timm.create_model(name, num_classes=0, in_chans=channels)


def _torchvision_backbone(models, name: str, image_size: int, channels: int) -> nn.Module:
    """A torchvision classifier whose last module is replaced by the identity, and its first filters where they take 3 channels."""
    model = models.get_model(name, weights=None, **({"image_size": image_size} if name.startswith("vit_") else {}))
    head = next((head for head in ("fc", "classifier", "heads", "head") if hasattr(model, head)), None)
    if head is None:
        raise UsageError(f"--backbone torchvision:{name}: not an image classifier")
    setattr(model, head, nn.Identity())
    if channels != 3:
        where, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
        names = ("out_channels", "kernel_size", "stride", "padding", "dilation")
        shape = {name: getattr(first, name) for name in names}
        model.set_submodule(where, nn.Conv2d(channels, **shape, bias=first.bias is not None))
    return model


def _library(name: str):
    """timm, or torchvision.models; None where it is missing or does not fit the installed torch."""
    try:
        return importlib.import_module({"timm": "timm", "torchvision": "torchvision.models"}[name])
    except Exception:  # a torchvision built for another torch raises RuntimeError
        return None


def build_backbone(name: str, image_size: int = 32, channels: int = 3) -> nn.Module:
    """The encoder called ``name``: a built-in one, then timm's, then torchvision's; ``timm:NAME`` names the library."""
    if name == "conv":
        return ConvEncoder(channels=channels)
    if name == "vit":
        if image_size % 4:
            raise UsageError(f"--image-size must be a multiple of 4 for --backbone vit, got {image_size}")
        return VisionTransformer(image_size, channels=channels)
    prefix, _, bare = name.rpartition(":")
    if prefix not in ("", "timm", "torchvision"):
        raise UsageError(f"--backbone: unknown library '{prefix}' in '{name}'; known: timm:NAME, torchvision:NAME")
    known, absent = list(BUILT_IN), []
    for library in (prefix,) if prefix else ("timm", "torchvision"):
        module = _library(library)
        if module is None:
            absent.append(library)
            continue
        names = module.list_models()
        known += names
        if bare.split(".")[0] in names:
            build = _timm_backbone if library == "timm" else _torchvision_backbone
            return build(module, bare, image_size, channels)
    close = difflib.get_close_matches(bare, known, 3, 0.5) or list(BUILT_IN)
    missing = f" (not usable here: {', '.join(absent)})" if absent else ""
    raise UsageError(f"--backbone: unknown encoder '{name}'; close: {', '.join(close)}{missing}")
