"""Any encoder's output as features (N, D).

An encoder may return a tensor, a mapping (a dict, a ``ModelOutput`` of transformers, a named tuple), or a tuple or list:

    mapping        its one tensor, or the first of ``FEATURE_KEYS`` that it has
    tuple, list    its one tensor
    (N, D)         the features;   (N, D, 1), maps (N, D, H, W) and (N, D, T, H, W): the mean over all positions
    (N, T, D)      under ``last_hidden_state``: the mean over the tokens

Anything else is refused with a message: the features would be a guess.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ._ask import ask

FEATURE_KEYS = ("pooler_output", "image_embeds", "text_embeds", "features", "out", "last_hidden_state")


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


def features_of(
    backbone: nn.Module, inputs: Tensor, feature_dim: int, name: str, of: str = "backbone", given: str = "images or views"
) -> Tensor:
    """inputs (N, ...) -> features (N, feature_dim), refused where the backbone gives another width.

    ``name``, ``of`` and ``given`` are what the method is called and calls the encoder and its inputs.
    """
    return of_width(ask(backbone, f"{name}: the {of}", given, inputs), inputs, feature_dim, name, of, given)


def of_width(
    output: Any, inputs: Tensor, feature_dim: int, name: str, of: str = "backbone", given: str = "images or views"
) -> Tensor:
    """What an encoder returned for inputs (N, ...) -> features (N, feature_dim), refused where they have another width."""
    features = pooled(output, len(inputs), name, of)
    if features.shape[1] != feature_dim:
        width, wanted = features.shape[1], f"feature_dim={feature_dim}" if of == "backbone" else feature_dim
        advice = f", pass feature_dim={width} for such {given}" if of == "backbone" else ""
        raise ValueError(
            f"{name}: the {of} gives {width} features, expected {wanted}, the width that was given or found by a probe; "
            f"got {given} {tuple(inputs.shape)}{advice}"
        )
    return features
