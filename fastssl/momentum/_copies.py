"""Copies of models for their averages, without wrappers and with new memory; and the names that wrappers give to tensors."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from fastssl.ops._lists import overlaps_itself

WRAPPERS = ("_orig_mod", "module")  # attributes of torch.compile's module, of DistributedDataParallel and DataParallel


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside torch.compile's module, DistributedDataParallel and DataParallel, in any order."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.get_submodule("module")
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of the model inside, each of whose tensors can be written in place.

    Tensors with a history, which some modules keep as plain attributes (the weight of the older ``weight_norm``, a cached output),
    have no deep copy: their values are taken without it.
    """
    model = unwrapped(model)
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            for tensor in _tensors_in(value):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = tensor.detach().clone()
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(
            f"EMA: model must be one that copy.deepcopy takes, got {type(model).__name__} ({error}); make the average yourself and "
            "give it as teacher="
        ) from error
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.layout == torch.strided and not tensor.is_nested and overlaps_itself(tensor):
            tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return made


def _tensors_in(value: object) -> list[Tensor]:
    """The tensors of an attribute, also those in lists and dicts in it."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return [tensor for each in inside for tensor in _tensors_in(each)]


def rename_wrapped(state: dict[str, Tensor], prefix: str, names: Collection[str]) -> None:
    """Renames, in place, keys of ``state`` after ``prefix`` that differ from one of ``names`` only by the names of wrappers."""
    bare: dict[str, str | None] = {}
    for name in names:  # a name that two tensors share without wrappers says nothing
        short = _without_wrappers(name)
        bare[short] = None if short in bare else name
    for key in [key for key in state if key.startswith(prefix)]:
        given = key.removeprefix(prefix)
        whole = bare.get(_without_wrappers(given))
        if whole is not None and given not in names and f"{prefix}{whole}" not in state:
            state[f"{prefix}{whole}"] = state.pop(key)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
