"""The tensors of two modules side by side: found once, compared, and sorted by launch.

Walking through a ResNet-50 costs more than launching its update, so later calls only ask whether every tensor is still in its
place. ``p.data = ...`` needs no notice, since the op reads addresses anew each time.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.checks import FLOATS, check_dense
from fastssl.ops._lists import as_list, check_lists, check_stored, check_writable
from fastssl.ops.ema import share, update_averages

HALF = (torch.bfloat16, torch.float16)
#: The class of lazy parameters and buffers, which torch's stubs leave out.
_LAZY = vars(nn.parameter)["UninitializedTensorMixin"]


class Tensors:
    """The parameters and buffers of a module in the module's order, tied ones once; none has changed its place while ``unchanged``.

    It keeps dicts of tensors alive but modules only weakly, so that it never holds the module by which it is found.
    """

    def __init__(self, module: nn.Module):
        modules = list(module.modules())
        self.sharded: list[Callable[[], Any]] = [weakref.ref(m) for m in modules if isinstance(m, fsdp_module())]
        self.reshard()
        self.params: list[Tensor] = list(module.parameters())
        self.buffers: list[Tensor] = list(module.buffers())
        homes: list[dict[str, Any]] = [d for m in modules for d in (m._parameters, m._buffers)]
        slots = [(d, key) for d in homes for key in d]
        self.homes, self.keys = [d for d, _ in slots], [key for _, key in slots]
        self.values = [d[key] for d, key in slots]
        self.dicts = homes + [cast(dict[str, Any], m._modules) for m in modules if not len(m._modules)]
        self.sizes = list(map(len, self.dicts))
        self.parents: list[Callable[[], Any]] = [weakref.ref(m) for m in modules if len(m._modules)]
        self.children = [weakref.ref(c) for r in self.parents for c in r()._modules.values() if c is not None]
        self.plain = all(isinstance(d, dict) for d in self.dicts)
        self.partner: Callable[[], Tensors | None] = lambda: None  # the tensors last found to match these

    def reshard(self) -> None:
        """fully_shard leaves a module's parameters whole after a forward without backward; the shards are what is averaged."""
        for module in self.sharded:
            module().reshard()

    def unchanged(self) -> bool:
        parents = [r() for r in self.parents]
        if not self.plain or None in parents:
            return False
        children = [c for parent in parents for c in parent._modules.values() if c is not None]
        if children != [r() for r in self.children] or list(map(len, self.dicts)) != self.sizes:
            return False
        self.reshard()
        return all(map(is_, map(dict.get, self.homes, self.keys), self.values))


def fsdp_module() -> type | tuple:
    """The class that ``fully_shard`` mixes in, or () where nobody has imported it."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())


_FOUND: weakref.WeakKeyDictionary[nn.Module, Tensors] = weakref.WeakKeyDictionary()


def find(module: nn.Module) -> Tensors:
    found = _FOUND.get(module)
    if found is None or not found.unchanged():
        found = _FOUND[module] = Tensors(module)
    return found


def dtypes_of(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    """The dtype and the device of each tensor."""
    return [(t.dtype, t.device) for t in tensors]


def check_module(op: str, name: str, module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: {name} must be a torch.nn.Module, got {type(module).__name__}")


def check_match(op: str, what: str, theirs: Sequence[tuple[str, Tensor]], mine: Sequence[tuple[str, Tensor]]) -> None:
    """Refuses named tensors of the model and of its average that differ, naming the first difference."""
    pairs: Iterable[Any] = zip_longest(theirs, mine, fillvalue=(None, None))
    for (name, p), (own, e) in pairs:
        if name is None or own is None:
            counts = f"got {len(theirs)} and {len(mine)}; the first without a partner is {name or own!r}"
            raise ValueError(f"{op}: the model must have as many {what}s as its average, {counts}")
        if any(isinstance(t, _LAZY) for t in (p, e)):
            raise ValueError(f"{op}: {what} {name!r} must be initialised, got a lazy one; run the model once before")
        for t in (p, e):
            if what == "parameter" or t.is_nested:
                check_dense(op, f"{what} {name!r}", t)
        if p.shape != e.shape:
            shapes = f"got {tuple(p.shape)} and {tuple(e.shape)}"
            raise ValueError(f"{op}: {what} {name!r} and {own!r} of the average must have the same shape, {shapes}")
        if what == "parameter" and any(t.dtype not in FLOATS and (t.is_floating_point() or t.is_complex()) for t in (p, e)):
            wanted = "float32, bfloat16, float16, float64 or an integer dtype"
            raise TypeError(f"{op}: parameter {name!r} must be {wanted}, got {p.dtype} and {e.dtype}")
        if _sharding(p) != _sharding(e):
            how = f"got {_sharding(p)} and {_sharding(e)}"
            raise ValueError(f"{op}: {what} {name!r} and {own!r} of the average must be sharded alike, {how}")


def check_teacher(model: nn.Module, teacher: nn.Module, buffers: str) -> None:
    """Refuses a teacher whose tensors cannot follow the model's."""
    if buffers != "skip":
        check_match("EMA", "buffer", list(model.named_buffers()), list(teacher.named_buffers()))
    shared = {id(t) for t in (*model.parameters(), *model.buffers())}
    for name, t in (*teacher.named_parameters(), *teacher.named_buffers()):
        if id(t) in shared:
            raise ValueError(f"EMA: teacher must share no tensor with model, got one whose {name!r} is the model's own")


def _sharding(tensor: Any) -> tuple | str:
    return (tensor.device_mesh, tensor.placements) if hasattr(tensor, "placements") else "whole"


def find_groups(
    dtypes: Sequence[tuple[torch.dtype, torch.device]], masters: bool, averaged: int
) -> tuple[list[list[int]], list[int]]:
    """Positions that are averaged, for each launch, and positions that are copied: integers, and all from ``averaged`` on."""
    groups: dict[tuple, list[int]] = {}
    copied = list(range(averaged, len(dtypes)))
    for i, (dtype, device) in enumerate(dtypes[:averaged]):
        if dtype in FLOATS:
            groups.setdefault((device, masters and dtype in HALF), []).append(i)
        else:
            copied.append(i)
    return list(groups.values()), copied


#: Averages, values, and the shadows that receive the new averages.
Launch = tuple[list[Tensor], list[Tensor], list[Tensor] | None]


@dataclass
class Update:
    """One update: lists for each launch, and what is copied from where."""

    launches: list[Launch]
    copies: tuple[list[Tensor], list[Tensor]]

    def run(
        self,
        op: str,
        names: tuple[str, str, str],
        momentum: float | Tensor,
        order: str,
        rounding: str = "nearest",
        seed: int | Tensor = 0,
    ) -> None:
        """Refuses before the first launch what any launch would refuse, then updates.

        ``names`` stand for averages, values and momentum in messages.
        """
        mine, theirs, kept = names
        shares = [_share(op, kept, momentum, ema[0].device) for ema, _, _ in self.launches]
        if len(self.launches) > 1:
            for ema, params, shadow in self.launches:
                written = {mine: as_list(op, mine, ema)} | ({"shadow": as_list(op, "shadow", shadow)} if shadow else {})
                check_lists(op, written, {theirs: as_list(op, theirs, params)})
        copies, sources = (as_list(op, "tensors", tensors) for tensors in self.copies)
        for i, (copy_, source) in enumerate(zip(copies, sources, strict=True)):
            if copy_.layout == torch.strided:
                check_writable(op, f"copied tensor {i} of {mine}", copy_)
                check_stored(op, f"copied tensor {i} of {mine}", copy_)
            if _counts(copy_) != _counts(source):
                dtypes = f"got {copy_.dtype} in {mine} and {source.dtype} in {theirs}"
                raise TypeError(f"{op}: integers are copied from integers, and other numbers from other ones, {dtypes}")
            if copy_.shape != source.shape:
                raise ValueError(f"{op}: a copied tensor must keep its shape {tuple(copy_.shape)}, got {tuple(source.shape)}")
        for (ema, params, shadow), m in zip(self.launches, shares, strict=True):
            here = seed.to(ema[0].device) if isinstance(seed, Tensor) else seed
            update_averages(op, ema, params, m, order=order, shadow=shadow, rounding=rounding, seed=here, names=names)
        if copies:
            torch._foreach_copy_(copies, sources)


def _counts(tensor: Tensor) -> bool:
    """Whether a tensor holds integers or bools."""
    return not tensor.is_floating_point() and not tensor.is_complex()


def _share(op: str, name: str, momentum: float | Tensor, device: torch.device) -> float | Tensor:
    """The momentum, checked, as a number or as a scalar on the device."""
    if isinstance(momentum, Tensor) and momentum.device.type not in ("cpu", "meta"):
        momentum = momentum.to(device)
    number, scalar = share(op, name, momentum, device)
    return number if scalar is None else scalar


def average_lists(
    op: str,
    names: tuple[str, str, str],
    averages: Sequence[Tensor],
    values: Sequence[Tensor],
    kept: float | Tensor,
    order: str,
    **rounding,
) -> None:
    """averages <- kept averages + (1 - kept) values, one launch for each device; integers are copied. It runs under no_grad.

    What any launch would refuse is refused before the first. ``names`` is what the caller calls averages, values and ``kept``.
    """
    for i, average in enumerate(averages):
        if average.dtype not in FLOATS and not _counts(average):
            wanted = "float32, bfloat16, float16, float64 or an integer dtype"
            raise TypeError(f"{op}: {names[0]}[{i}] must be {wanted}, got {average.dtype}")
    groups, copied = find_groups(dtypes_of(averages), False, len(averages))
    launches: list[Launch] = [([averages[i] for i in group], [values[i] for i in group], None) for group in groups]
    Update(launches, ([averages[i] for i in copied], [values[i] for i in copied])).run(op, names, kept, order, **rounding)
