"""Feature maps of encoders: their shape, those of inner layers, and layers that double their sides."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ._ask import ask
from ._layers import refuse_lazy
from ._probe import undisturbed


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
    times = max(0, (shape[1] // (stride * height)).bit_length() - 1)
    layers, width = doublings(width, times)
    return nn.Sequential(*layers, nn.Conv2d(width, classes, 1)), height << times


def with_maps(backbone: nn.Module, images: Tensor, layers: Sequence[str], name: str) -> tuple[Any, list[Tensor]]:
    """What the encoder returns for images, and what those of its layers gave that have these names.

    Raises:
        ValueError: a layer that gave no maps (N, D, h, w).
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in dict.fromkeys(layers):
            hook = backbone.get_submodule(layer).register_forward_hook(lambda *given, layer=layer: seen.update({layer: given[2]}))
            hooks.callback(hook.remove)
        output = ask(backbone, f"{name}: the backbone", "images or views", images)
    for layer in layers:
        maps = seen.get(layer)
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            kind = type(maps).__name__ if not isinstance(maps, Tensor) else f"shape {tuple(maps.shape)}"
            raise ValueError(f"{name}: layers must be names of layers that give maps (N, D, h, w); {layer!r} gave {kind}")
    return output, [seen[layer] for layer in layers]
