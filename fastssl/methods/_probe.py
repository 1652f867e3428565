"""The width of any encoder's features, by a probe that leaves no trace on the encoder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._encoder import NotFeatures, pooled
from ._layers import check_encoder, first_layer, refuse_lazy

#: Sides of the probes of a convolution, by its number of dimensions.
SIDES = {1: (64, 256, 1024, 4096, 16384), 2: (32, 64, 96, 128, 224, 256, 384, 512), 3: (16, 32, 64, 96)}
LENGTHS = (4, 16, 77)  # of the probes of an embedding, in tokens


@contextmanager
def undisturbed(backbone: nn.Module) -> Iterator[None]:
    """Inside this context the encoder is in evaluation mode without gradients.

    Afterwards its training flags and buffers and the random number generators are as they were before.
    """
    flags = {module: module.training for module in backbone.modules()}
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in flags
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    devices = {t.device for t in (*backbone.parameters(), *backbone.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            for module in flags:
                module.training = False
            yield
        finally:
            for module, name, buffer, version, before in buffers:
                module._buffers[name] = buffer
                if buffer._version != version:
                    buffer.copy_(before)
            for module, flag in flags.items():
                module.training = flag


def image_sizes(backbone: nn.Module) -> list[tuple[int, int]]:
    """(H, W) to try: what the encoder says it was made for, as ours and those of timm, torchvision and transformers do, then
    ``SIDES``, then the size of timm's pretrained weights, which most of its encoders do not need."""
    places = (getattr(backbone, "patch_embed", None), backbone, getattr(backbone, "config", None))
    stated = [getattr(place, key, None) for place in places for key in ("img_size", "image_size")]
    config = getattr(backbone, "pretrained_cfg", None)
    weights = config.get("input_size", ())[-2:] if isinstance(config, Mapping) else None
    pairs = [(size, size) if isinstance(size, int) else size for size in (*stated, *SIDES[2], weights)]
    return [tuple(p) for p in pairs if isinstance(p, tuple | list) and len(p) == 2 and all(isinstance(s, int) for s in p)]


def probe_shapes(backbone: nn.Module) -> Iterator[tuple[tuple[int, ...], nn.Module | None]]:
    """Shapes to try, batch of 2 in front, and the layer that they are for: the first convolution, embedding, GRU or linear one."""
    conv, embedding = first_layer(backbone, _ConvNd), first_layer(backbone, nn.Embedding)
    recurrent, linear = first_layer(backbone, nn.RNNBase), first_layer(backbone, nn.Linear)
    if conv is not None:
        dims = len(conv.kernel_size)
        for size in image_sizes(backbone) if dims == 2 else [(side,) * dims for side in SIDES[dims]]:
            yield (2, conv.in_channels, *size), conv
    if embedding is not None:
        yield from (((2, length), embedding) for length in LENGTHS)
    if recurrent is not None:
        yield (2, 16, recurrent.input_size), recurrent
    if linear is not None:
        yield from (((2, linear.in_features), linear), ((2, 16, linear.in_features), linear))
    if conv is None and embedding is None:
        yield from (((2, 3, *size), linear) for size in image_sizes(backbone))


def probe_of(shape: tuple[int, ...], layer: nn.Module) -> Tensor:
    """Zeros with the dtype and device of the layer's weights; for an embedding tokens 1, because 0 is often padding."""
    like = next((p for p in layer.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(layer, nn.Embedding):
        return torch.full(shape, min(1, layer.num_embeddings - 1), device=like.device)
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def find_feature_dim(backbone: nn.Module, name: str = "SimCLR", argument: str = "feature_dim", of: str = "backbone") -> int:
    """The width of the encoder's features, from probes of zeros with the number of channels and dimensions of its first layer.

    The encoder is as before afterwards. ``num_features`` is not asked: timm's is the width before the last layer of some models.

    Raises:
        ValueError: no probe passed, or what the encoder returned has no rule; ``name``, ``argument`` and ``of`` are what the
            caller is called and calls the width and the encoder.
    """
    check_encoder(backbone, name, of)
    refuse_lazy(backbone, name, of)
    backbone = getattr(backbone, "_orig_mod", backbone)  # of torch.compile: odd shapes would each be compiled
    tried, refusal, last = [], None, None
    with undisturbed(backbone):
        for shape, layer in probe_shapes(backbone):
            try:
                return pooled(backbone(probe_of(shape, layer or backbone)), 2, name, of).shape[1]
            except NotFeatures as error:
                refusal = refusal or error
            except Exception as error:  # whatever an encoder raises for a shape that it is not made for
                last = error
            tried.append(shape)
    if refusal:
        raise refusal
    width = getattr(backbone, "num_features", None)
    stated = f"; its num_features is {width}, not always the width of what it returns" if isinstance(width, int) else ""
    said = f"{type(last).__name__}: {last}".split("\n")[0]
    raise ValueError(
        f"{name}: no probe passed the {of}, pass {argument}{stated}. Tried inputs of zeros of shapes "
        f"{', '.join(map(str, tried))}; the last one gave {said}"
    )
