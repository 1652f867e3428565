"""Feature maps of encoders: their shape, those of inner layers, and layers that double their sides."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ._ask import ask
from ._layers import refuse_lazy
from ._probe import probe_of, probe_shapes, undisturbed


def map_shape(name: str, backbone: Any, shape: tuple[int, int, int], argument: str = "backbone") -> tuple[int, int, int]:
    """(D, h, w) of ``backbone.forward_features`` for images of ``shape`` (C, H, W)."""
    said = f"{name}: {argument} must be a convolutional encoder with forward_features -> (N, D, h, w)"
    kind = type(backbone).__name__
    if not hasattr(backbone, "forward_features"):
        raise ValueError(f"{said}, got {kind} without forward_features")
    refuse_lazy(backbone, name)
    like = next(backbone.parameters(), torch.empty(0))
    images = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    with undisturbed(backbone):
        try:
            maps = backbone.forward_features(images)
        except Exception as error:
            raise ValueError(
                f"{said}, got {kind}, which fails on images of image_size {shape[1]} and {shape[0]} channels: {error}"
            ) from error
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise ValueError(f"{said}, got {kind}, whose features have shape {tuple(getattr(maps, 'shape', ()))}")
    scale = shape[1] // maps.shape[2]
    if scale & (scale - 1) or (maps.shape[2] * scale, maps.shape[3] * scale) != shape[1:]:
        raise ValueError(f"{said}, h and w those of image_size {shape[1:]} over a power of 2, got {tuple(maps.shape[2:])}")
    return maps.shape[1], maps.shape[2], maps.shape[3]


def doublings(width: int, times: int) -> tuple[list[nn.Module], int]:
    """Layers that double the sides of maps (N, width, h, w) so many times, and the width of what they give."""
    layers: list[nn.Module] = []
    for _ in range(times):
        after = max(32, width // 2)
        layers += [nn.ConvTranspose2d(width, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        width = after
    return layers, width


def class_decoder(
    name: str, backbone: Any, shape: tuple[int, int, int], stride: int, classes: int, argument: str = "backbone"
) -> tuple[nn.Sequential, int]:
    """From an encoder's maps of images of ``shape`` (C, S, S) to scores of classes (N, classes, h, h), and h.

    A score is for a cell of ``stride`` pixels, or for a place of the maps where these are finer.
    """
    width, height, _ = map_shape(name, backbone, shape, argument)
    scale = shape[1] // height
    if stride < scale and stride & (stride - 1):
        raise ValueError(f"{name}: stride must be a power of 2 or at least the {scale} pixels of a place of the maps, got {stride}")
    times = max(0, (scale // stride).bit_length() - 1)
    layers, width = doublings(width, times)
    return nn.Sequential(*layers, nn.Conv2d(width, classes, 1)), height << times


def with_maps(backbone: nn.Module, images: Tensor, layers: Sequence[str], name: str) -> tuple[Any, list[Tensor]]:
    """What the encoder returns for images, and the maps (N, D, h, w) that those of its layers gave that have these names."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in dict.fromkeys(layers):
            hook = backbone.get_submodule(layer).register_forward_hook(lambda *given, layer=layer: seen.update({layer: given[2]}))
            hooks.callback(hook.remove)
        output = ask(backbone, f"{name}: the backbone", "images", images)
    if missing := [layer for layer in layers if layer not in seen]:
        raise ValueError(
            f"{name}: layer {missing[0]!r} of the backbone was not called, or is in a compiled graph that calls no hooks; compile "
            f"the method in place of its backbone"
        )
    return output, [seen[layer] for layer in layers]


def map_widths(name: str, backbone: nn.Module, layers: Sequence[str], argument: str = "layers") -> list[int]:
    """The widths D of the maps (N, D, h, w) that the layers of these names give, from the first probe that passes the encoder."""
    if not isinstance(layers, tuple | list) or not layers or not all(isinstance(layer, str) for layer in layers):
        raise TypeError(f"{name}: {argument} must be names of layers of the backbone, got {layers!r}")
    known = dict(backbone.named_modules())
    if missing := [layer for layer in layers if layer not in known or not layer]:
        some = ", ".join(list(known)[1:9])
        raise ValueError(f"{name}: {argument} must be names of layers of the backbone, such as {some}; got {missing[0]!r}")
    with undisturbed(backbone):
        for shape, layer in probe_shapes(backbone):
            try:
                maps = with_maps(backbone, probe_of(shape, layer or backbone), layers, name)[1]
            except Exception:
                continue  # a shape that the encoder is not made for, or a layer that it does not call
            if all(isinstance(part, Tensor) and part.ndim == 4 for part in maps):
                return [part.shape[1] for part in maps]
    raise ValueError(f"{name}: {argument} must be names of layers that give maps (N, D, h, w), got {', '.join(layers)}")
