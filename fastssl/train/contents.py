"""What torch read of a checkpoint, looked at before anything is computed with it: whether it is that of a run, whole and finite."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastssl.train.options import refused_setting
from fastssl.train.recipes import RECIPES

MOST_NUMBER = 2**53  # of whole ones in a history, which floats hold exactly
MOST_DEEP = 32  # dictionaries and lists inside each other; six in a checkpoint of a run
MOST_VALUES = 10_000_000  # a few bytes that hold the same list twice, and so on, are more


def malformed(checkpoint: Any, *, values: bool = True) -> str | None:
    """Why this is no whole checkpoint of ``fastssl train``; None where it is. ``values``: whether to look at those of tensors."""
    own = checkpoint.get("fastssl") if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict):
        return "it was not written by fastssl train"
    if why := odd_value(checkpoint):
        return why
    config, weights = own.get("config"), checkpoint.get("state_dict")
    if not isinstance(config, dict) or config.get("method") not in RECIPES:
        return "the settings of its run are missing, or of a method that is not known here"
    if why := refused_setting(config):
        return why
    if (
        why := refused_setting({**config, "image_size": own.get("image_size")})
        or wrong_rows(own.get("history"))
        or wrong_notes(own)
    ):
        return why
    if not (isinstance(weights, dict) and weights and all(isinstance(value, Tensor) for value in weights.values())):
        return "its weights are missing"
    return not_finite(checkpoint) if values else None


def wrong_rows(history: Any) -> str | None:
    """Why these are not the rows of a run; None where they are: rising epochs, and a number or None of each score."""
    if not (isinstance(history, list) and history and all(isinstance(row, dict) for row in history)):
        return "it has no history of epochs"
    values = [value for row in history for value in row.values()]
    if any(isinstance(value, int) and abs(value) > MOST_NUMBER for value in values):
        return "its history of epochs has a number that no run reaches"
    epochs = [row.get("epoch") for row in history]
    numbers = all(value is None or isinstance(value, (int, float)) for value in values)
    whole = all(isinstance(epoch, int) and epoch >= 0 for epoch in epochs) and epochs == sorted(set(epochs))
    if not (numbers and whole and all("loss" in row for row in history)):
        return "its history of epochs is damaged"
    return None


def wrong_notes(own: dict) -> str | None:
    """Why what a run notes of its data and of an interrupted epoch is not that; None where it is."""
    data, short = own.get("data"), own.get("cut_short")
    if not (data is None or (isinstance(data, dict) and all(map(is_fingerprint, data.values())))):
        return "what it notes of its data is damaged"
    states = (short["losses"], *short["generators"].values()) if short else ()
    return None if all(isinstance(state, Tensor) and state.ndim == 1 for state in states) else "its interrupted epoch is damaged"


def is_fingerprint(half: Any) -> bool:
    """Whether this is what ``fingerprint`` notes of one half of a data set."""
    if not (isinstance(half, dict) and isinstance(half.get("classes"), list) and isinstance(half.get("digest"), str)):
        return False
    count = half.get("count")
    return isinstance(count, int) and not isinstance(count, bool) and count >= 0 and all(type(c) is str for c in half["classes"])


def not_finite(checkpoint: dict) -> str | None:
    """Names a weight, or what the optimizer keeps for one, with values that are NaN or infinite."""
    weights = {name.removeprefix("method."): value for name, value in checkpoint["state_dict"].items()}
    for name, value in (*weights.items(), *tensors_in(checkpoint.get("optimizer_states"), "optimizer")):
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} has values that are NaN or infinite"
    return None


def values_in(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in dictionaries and lists inside each other that is neither, each with the keys that lead to it.

    Raises:
        ValueError: more than ``MOST_DEEP`` lie inside each other, as where one holds itself, or there are over ``MOST_VALUES``.
    """
    left, count = [(name, state, 0)], 0
    while left:
        name, value, depth = left.pop()
        count += 1
        if depth > MOST_DEEP or count > MOST_VALUES:
            raise ValueError(f"its values lie more than {MOST_DEEP} deep, or are more than {MOST_VALUES}")
        if isinstance(value, (dict, list, tuple)):
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            left += reversed([(f"{name}.{key}" if name else str(key), each, depth + 1) for key, each in inside])
        else:
            yield name, value


def tensors_in(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors at any depth of dictionaries and lists, each with the keys that lead to it."""
    return ((name, value) for name, value in values_in(state, name) if isinstance(value, Tensor))


def odd_value(state: Any) -> str | None:
    """Names a value that no checkpoint holds, or a tensor whose shape is larger than its memory; None where there is none."""
    for name, value in values_in(state):
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                return f"{name} is no plain tensor"
            if (needed := value.numel() * value.element_size()) > value.untyped_storage().nbytes():
                return f"{name} of shape {tuple(value.shape)} needs {needed} bytes and has {value.untyped_storage().nbytes()}"
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            return f"{name} is of type {type(value).__name__}, neither a tensor nor a number nor text"
    return None
