"""Any encoder's output as features (N, D), and its width D by a probe that leaves no trace on the encoder.

An encoder may return a tensor, a mapping (a dict, a ``ModelOutput`` of transformers, a named tuple), or a tuple or list:

    mapping        its one tensor, or the first of ``FEATURE_KEYS`` that it has
    tuple, list    its one tensor
    (N, D)         the features;   (N, D, 1), maps (N, D, H, W) and (N, D, T, H, W): the mean over all positions
    (N, T, D)      under ``last_hidden_state``: the mean over the tokens

Anything else is refused with a message: the features would be a guess.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from fastssl.checks import readable

Layer = TypeVar("Layer", bound=nn.Module)
FEATURE_KEYS = ("pooler_output", "image_embeds", "text_embeds", "features", "out", "last_hidden_state")

#: Sides of the probes of a convolution, by its number of dimensions.
SIDES = {1: (64, 256, 1024, 4096, 16384), 2: (32, 64, 96, 128, 224, 256, 384, 512), 3: (16, 32, 64, 96)}
LENGTHS = (4, 16, 77)  # of the probes of an embedding, in tokens


class NotFeatures(ValueError):
    """An encoder returned what none of the rules above covers."""


def describe(output: Any) -> str:
    """What an encoder returned, for a message."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {output.dtype}"
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with the keys {', '.join(map(repr, output)) or 'none'}"
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} of ({', '.join(map(describe, output))})"
    return type(output).__name__


def take_tensor(output: Any, name: str, of: str) -> tuple[Tensor, str | int]:
    """The tensor of features in what an encoder returned, and its key or place there ("" for a tensor itself)."""
    if isinstance(output, Tensor):
        return output, ""
    fields = output._asdict() if hasattr(output, "_asdict") else output
    named = dict(enumerate(fields)) if isinstance(fields, tuple | list) else fields if isinstance(fields, Mapping) else {}
    found = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    key = next(iter(found)) if len(found) == 1 else next((key for key in FEATURE_KEYS if key in found), None)
    if key is None:
        raise NotFeatures(
            f"{name}: the {of} must return a tensor, a mapping with one tensor or one of the keys {', '.join(FEATURE_KEYS)}, "
            f"or a tuple with one tensor, got {describe(fields)}"
        )
    return found[key], key


def pooled(output: Any, rows: int, name: str, of: str = "backbone") -> Tensor:
    """What an encoder returned for ``rows`` inputs, by the rules above -> features (rows, D)."""
    features, key = take_tensor(output, name, of)
    if not features.is_floating_point():
        raise NotFeatures(f"{name}: the {of} must return floating features, got {describe(features)}")
    if features.ndim < 2 or len(features) != rows:
        raise NotFeatures(f"{name}: the {of} must return a row for each of {rows} inputs, got shape {tuple(features.shape)}")
    if features.ndim == 3 and key == "last_hidden_state":
        return features.mean(1)
    if features.ndim > 5 or (features.ndim == 3 and features.shape[2] != 1):
        raise NotFeatures(
            f"{name}: the {of} must return features (N, D) or maps (N, D, H, W), got shape {tuple(features.shape)}; "
            f"tokens or a signal's maps have no rule: take their mean, or end the {of} with nn.Flatten()"
        )
    return features if features.ndim == 2 else features.flatten(2).mean(2)


def take_tokens(output: Any, rows: int, width: int, name: str) -> Tensor:
    """Hidden states (rows, L, width): a tensor, ``last_hidden_state`` of an object or mapping, or the first of a tuple or list."""
    if isinstance(output, Mapping):
        tokens = output.get("last_hidden_state")
    else:
        tokens = getattr(output, "last_hidden_state", output[0] if isinstance(output, tuple | list) and output else output)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or (len(tokens), tokens.shape[2]) != (rows, width):
        wanted = f"last_hidden_state ({rows}, L, {width}), {width} being hidden_dim"
        raise NotFeatures(f"{name}: the encoder must return {wanted}, got {describe(output)}")
    return tokens


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """hidden (N, L, D), mask (N, L), 0 = padding -> the mean over the tokens that are no padding (N, D); 0 where there is none."""
    weight = mask.to(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def check_encoder(backbone: Any, name: str, argument: str = "backbone") -> None:
    if not isinstance(backbone, nn.Module):
        kind = f"the class {backbone.__name__}" if isinstance(backbone, type) else type(backbone).__name__
        raise TypeError(f"{name}: {argument} must be a torch.nn.Module, got {kind}")


def refuse_lazy(backbone: nn.Module, name: str, of: str = "backbone") -> None:
    lazy = [key for key, value in (*backbone.named_parameters(), *backbone.named_buffers()) if is_lazy(value)]
    if lazy:
        raise ValueError(f"{name}: the {of} has lazy parameters ({lazy[0]}); give them their shape first, by a call with inputs")


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


def first_layer(encoder: nn.Module, layer: type[Layer]) -> Layer | None:
    """The first layer of a type, in the order in which the layers were registered."""
    return next((module for module in encoder.modules() if isinstance(module, layer)), None)


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


def features_of(
    backbone: nn.Module, inputs: Tensor, feature_dim: int, name: str, of: str = "backbone", given: str = "images or views"
) -> Tensor:
    """inputs (N, ...) -> features (N, feature_dim), refused where the backbone gives another width.

    ``name``, ``of`` and ``given`` are what the method is called and calls the encoder and its inputs.
    """
    features = pooled(ask(backbone, f"{name}: the {of}", given, inputs), len(inputs), name, of)
    if features.shape[1] != feature_dim:
        width, wanted = features.shape[1], f"feature_dim={feature_dim}" if of == "backbone" else feature_dim
        advice = f", pass feature_dim={width} for such {given}" if of == "backbone" else ""
        raise ValueError(
            f"{name}: the {of} gives {width} features, expected {wanted}, the width that was given or found by a probe; "
            f"got {given} {tuple(inputs.shape)}{advice}"
        )
    return features


def ask(encoder: nn.Module, who: str, given: str, inputs: Tensor, **more: Tensor) -> Any:
    """``encoder(inputs)``, with keywords where there is more than one. An error on inputs that do not fit says what does not."""
    try:
        return encoder(**{given: inputs}, **more) if more else encoder(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        found = [] if torch.compiler.is_compiling() else misfits(encoder, inputs)
        if not found:
            raise
        error_type = TypeError if [property for property, _ in found] == ["dtype"] else ValueError
        what = f"{given} {tuple(inputs.shape)} of {inputs.dtype} on {inputs.device}"
        raise error_type(f"{who} failed on {what}: {', '.join(said for _, said in found)}") from error


def misfits(encoder: nn.Module, inputs: Tensor) -> list[tuple[str, str]]:
    """In what the inputs differ from those that the encoder's first layer takes: the property and a clause for the message.

    Where there is no difference, a failure is the encoder's own.
    """
    weight = next((p for p in encoder.parameters() if p.is_floating_point()), None)
    if weight is None:
        return []
    found = [] if inputs.device == weight.device else [("device", f"its parameters are on {weight.device}")]
    conv, embedding, linear = (first_layer(encoder, _ConvNd), first_layer(encoder, nn.Embedding), first_layer(encoder, nn.Linear))
    integers = inputs.dtype in (torch.int64, torch.int32)
    if conv is None and embedding is not None:
        if not integers:
            found.append(("dtype", "its embedding takes int64 or int32 tokens"))
        elif readable(inputs) and not 0 <= int(inputs.min()) <= int(inputs.max()) < embedding.num_embeddings:
            found.append(("range", f"its embedding takes tokens from 0 to {embedding.num_embeddings - 1}"))
        return found
    if conv is not None and (inputs.ndim != len(conv.kernel_size) + 2 or inputs.shape[1] != conv.in_channels):
        sides = ", ".join([str(conv.in_channels), *"DHW"[-len(conv.kernel_size) :]])
        found.append(("shape", f"its first convolution takes (B, {sides})"))
    if conv is None and linear is not None and linear.in_features not in (inputs.shape[-1], inputs[0].numel()):
        found.append(("shape", f"its first linear layer takes {linear.in_features} features"))
    if inputs.dtype != weight.dtype and not torch.is_autocast_enabled(inputs.device.type):
        found.append(("dtype", f"its parameters are {weight.dtype}"))
    return found
