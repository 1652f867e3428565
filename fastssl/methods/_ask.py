"""Asks an encoder for its features; an error on inputs that do not fit says what does not."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fastssl.checks import readable

from ._layers import first_layer


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
