"""Encoders by name: built-in ``conv`` and ``vit``, and every timm or torchvision model where those are installed.

An encoder maps images (B, C, S, S) to features (B, D), C = 3 unless it is given; ``num_features`` is D where it is known without
running it.
"""

import difflib
import importlib
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.methods import VisionTransformer
from fastssl.train import UsageError, usable_torchvision

BUILT_IN = ("conv", "vit")


class ConvEncoder(nn.Sequential):
    """Four 3 x 3 convolutions with batch normalisation, then the mean over positions: (B, C, S, S) -> (B, D).

    Args:
        widths: channels after each convolution; the last one is D.
        strides: stride of each convolution.
        channels: number C of channels of the images.

    Examples:
        >>> ConvEncoder()(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 256])
    """

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


class WaveEncoder(nn.Sequential):
    """Four strided convolutions over a waveform with batch normalisation, then the mean over time: (B, S) or (B, 1, S) -> (B, D).

    Args:
        widths: channels after each convolution; the last one is D.
        kernels: samples that each convolution sees, of which half is its stride.

    Examples:
        >>> WaveEncoder()(torch.rand(5, 4000)).shape
        torch.Size([5, 256])
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), kernels: tuple[int, ...] = (10, 8, 4, 4)):
        layers: list[nn.Module] = []
        for before, width, kernel in zip((1, *widths[:-1]), widths, kernels, strict=True):
            layers += [nn.Conv1d(before, width, kernel, kernel // 2, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.num_features = widths[-1]

    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms if waveforms.ndim == 3 else waveforms[:, None])


def vit_patch_size(image_size: int) -> int:
    """Side of the built-in transformer's patches: the smallest of 4, 8, 16 and 32 that divides the image into at most 16 x 16, or
    the largest of them that divides it."""
    fitting = [patch for patch in (4, 8, 16, 32) if image_size % patch == 0]
    if not fitting:
        raise UsageError(f"--image-size {image_size}: must be a multiple of 4 for --backbone vit, or of its --patch-size")
    return next((patch for patch in fitting if image_size // patch <= 16), fitting[-1])


def build_vit(image_size: int, patch_size: int | None = None, **options: Any) -> VisionTransformer:
    """The built-in transformer; ``patch_size`` is by default that of ``vit_patch_size``."""
    patch = patch_size or vit_patch_size(image_size)
    if image_size % patch:
        raise UsageError(f"--patch-size {patch}: must divide --image-size {image_size}")
    return VisionTransformer(image_size, patch, **options)


def tokens_line(method: nn.Module) -> str | None:
    """How many tokens the transformer of a method makes of an image; None where there is none."""
    for module in method.modules():
        embed = getattr(module, "patch_embed", None)
        grid, patch = getattr(embed, "grid_size", None), getattr(embed, "patch_size", None)
        if isinstance(grid, tuple) and isinstance(patch, tuple) and len(grid) == len(patch) == 2:
            return f"transformer: patches of {patch[0]} x {patch[1]} pixels, {grid[0] * grid[1]} tokens an image"
    return None


def timm_model(timm: ModuleType, name: str, image_size: int, channels: int, all_sizes: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model without its classifier, and the options of ``timm.create_model`` that make it.

    Transformers are made for ``image_size``, with ``all_sizes`` also for other sizes.
    """
    options: dict[str, Any] = {"img_size": image_size, "dynamic_img_size": True} if all_sizes else {"img_size": image_size}
    while True:
        every = {"num_classes": 0, **({} if channels == 3 else {"in_chans": channels}), **options}
        try:
            return timm.create_model(name, **every), every
        except TypeError:  # convolutional models take no img_size, and some transformers no dynamic_img_size
            if not options:
                raise
            options.popitem()


def _timm_backbone(*arguments: Any) -> nn.Module:
    return timm_model(*arguments)[0]


def torchvision_options(name: str, image_size: int) -> dict[str, Any]:
    """The options of torchvision's ``get_model`` that make a model with fresh weights; transformers are made for ``image_size``."""
    return {"weights": None, **({"image_size": image_size} if name.startswith("vit_") else {})}


def head_of(model: nn.Module) -> str | None:
    """The name of the last module of a torchvision classifier; None where the model is none."""
    return next((head for head in ("fc", "classifier", "heads", "head") if hasattr(model, head)), None)


def _torchvision_backbone(models: ModuleType, name: str, image_size: int, channels: int, all_sizes: bool) -> nn.Module:
    """A torchvision classifier whose last module is replaced by the identity, and its first filters where they take 3 channels."""
    model = models.get_model(name, **torchvision_options(name, image_size))
    if (head := head_of(model)) is None:
        raise UsageError(f"--backbone torchvision:{name}: not an image classifier")
    setattr(model, head, nn.Identity())
    if channels != 3:
        where, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
        names = ("out_channels", "kernel_size", "stride", "padding", "dilation")
        shape = {name: getattr(first, name) for name in names}
        model.set_submodule(where, nn.Conv2d(channels, **shape, bias=first.bias is not None))
    return model


def library_module(name: str) -> tuple[ModuleType | None, str]:
    """The module ``timm`` or ``torchvision.models`` and "", or None and why it cannot be used. timm imports torchvision."""
    if find_spec(name) is None:
        return None, f"{name} is not installed (pip install {name})"
    reason = usable_torchvision()
    try:
        return importlib.import_module({"timm": "timm", "torchvision": "torchvision.models"}[name]), ""
    except Exception as error:
        own = f"{name} cannot be imported: {type(error).__name__}: {str(error).splitlines()[0]}"
        return None, reason if reason and name == "torchvision" else own + (f" ({reason})" if reason else "")


def _library_backbone(library: str, module: ModuleType, name: str, image_size: int, channels: int, all_sizes: bool) -> nn.Module:
    """A model of timm or torchvision that is known to take images of this size."""
    what = f"--backbone {library}:{name}"
    try:
        encoder = (_timm_backbone if library == "timm" else _torchvision_backbone)(module, name, image_size, channels, all_sizes)
        training = encoder.training
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, channels, image_size, image_size))
        return encoder.train(training)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(f"{what}: takes no images of --image-size {image_size}: {str(error).splitlines()[0]}") from error


def build_backbone(
    name: str, image_size: int = 32, channels: int = 3, *, patch_size: int | None = None, all_sizes: bool = False
) -> nn.Module:
    """The encoder called ``name``: a built-in one, then timm's, then torchvision's.

    Args:
        name: "conv", "vit", or the name of a model; ``timm:NAME`` and ``torchvision:NAME`` say of which library.
        image_size: side S of the images in pixels.
        channels: number C of their channels.
        patch_size: side of the patches of "vit"; other transformers have theirs in their name.
        all_sizes: whether a transformer also takes images of other sizes, as small crops are; its positions are interpolated.

    Returns:
        A module with fresh weights from images (B, C, S, S) to features (B, D).

    Raises:
        UsageError: there is no such encoder, or it takes no images of this size. The text names the option of the command line.

    Examples:
        >>> build_backbone("vit", 32)(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 128])
    """
    if name == "vit":
        return build_vit(image_size, patch_size, channels=channels, dynamic_img_size=all_sizes)
    if patch_size is not None:
        raise UsageError(f"--patch-size {patch_size}: only --backbone vit takes it, got --backbone {name}")
    if name == "conv":
        return ConvEncoder(channels=channels)
    prefix, _, bare = name.rpartition(":")
    if prefix not in ("", "timm", "torchvision"):
        raise UsageError(f"--backbone: unknown library '{prefix}' in '{name}'; known: timm:NAME, torchvision:NAME")
    known, reasons = list(BUILT_IN), []
    for library in (prefix,) if prefix else ("timm", "torchvision"):
        module, reason = library_module(library)
        if module is None:
            reasons.append(reason)
            continue
        names = module.list_models() if library == "timm" else module.list_models(module=module)  # classifiers only
        known += names
        if bare.split(".")[0] in names:
            return _library_backbone(library, module, bare, image_size, channels, all_sizes)
    close = " or ".join(difflib.get_close_matches(bare, dict.fromkeys(known), 3, 0.5))
    hint = f"did you mean {close}?" if close else f"built in: {', '.join(BUILT_IN)}; others are models of timm and torchvision"
    raise UsageError(f"--backbone: unknown encoder '{name}'; {'; '.join([hint, *reasons])}")
