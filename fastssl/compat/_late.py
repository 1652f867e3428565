"""Outputs of transformers' models with entries that are computed when they are first read.

A ``ModelOutput`` is a dict, a dataclass and, by position, a tuple. ``late_output`` derives a class from one whose named entries may
come late: reading one of them by attribute, key or position computes all of them, and so does whatever goes through all entries
(``values()``, ``items()``, ``to_tuple()``, copies, pickle).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LATER: Any = object()  # in the place of entries that nobody has read


class _Late(dict):
    """What the class of an output gets."""

    _late: tuple[str, ...] = ()

    def _fill(self) -> None:
        compute = self.__dict__.pop("_compute", None)
        if compute is not None:
            for name, value in zip(self._late, compute(), strict=True):
                self[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._late and value is not _LATER:
            self._fill()
        super().__setattr__(name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self._late and value is not _LATER:
            self._fill()
        super().__setitem__(key, value)

    def __getitem__(self, key: Any) -> Any:
        if key == 0 or isinstance(key, str):
            key = next(iter(self)) if key == 0 else key
            if key not in self._late:
                return dict.__getitem__(self, key)
        self._fill()
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401

    def values(self) -> Any:
        self._fill()
        return super().values()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def __reduce__(self) -> Any:
        self._fill()
        return super().__reduce__()


def _entry(name: str) -> property:
    """An attribute that fills its output when it is read."""

    def read(self) -> Any:
        self._fill()
        return self.__dict__.get(name)

    def write(self, value: Any) -> None:
        self.__dict__[name] = value

    return property(read, write)


def late_output(cls: type, names: tuple[str, ...], module: str) -> type:
    """A class derived from an output class, of the same name, in which the entries ``names`` may come late."""
    words = f"The library's class, which computes {' and '.join(names)} when they are first read."
    own = {"_late": names, "__module__": module, "__doc__": words}
    return type(cls.__name__, (_Late, cls), own | {name: _entry(name) for name in names})


def with_late(cls: Any, compute: Callable[[], tuple[Tensor, ...]], like: Tensor, **entries: Any) -> Any:
    """An output whose late entries are what ``compute`` gives, in the mode of gradients and autocast that holds now."""
    graph, device = torch.is_grad_enabled(), like.device.type
    cast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def then() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(graph), torch.autocast(device, dtype=dtype, enabled=cast):
            return compute()

    output = cls(**entries, **dict.fromkeys(cls._late, _LATER))
    output.__dict__["_compute"] = then
    return output
