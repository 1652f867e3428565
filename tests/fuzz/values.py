"""Walks through arguments and results: tensors in them, copies for the truth, whether two are the same, and fake ones."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def walk(value, change: Callable[[Tensor], Tensor], done: dict | None = None, number: Callable | None = None):
    """``value`` with every tensor changed, once each, so that what was one tensor stays one."""
    done = {} if done is None else done
    if type(value) is int and not -(2**63) <= value < 2**63 and number is not None:
        return number(value)
    if isinstance(value, np.generic) and number is not None:
        return walk(value.item(), change, done, number)
    if isinstance(value, Tensor):
        if id(value) not in done:
            done[id(value)] = change(value)
        return done[id(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(walk(part, change, done, number) for part in value))
    if type(value) in (list, tuple):
        return type(value)(walk(part, change, done, number) for part in value)
    if type(value) is dict:
        return {name: walk(part, change, done, number) for name, part in value.items()}
    return value


def tensors(value) -> Iterator[Tensor]:
    """Every tensor once."""
    found = {}
    walk(value, lambda t: found.setdefault(id(t), t))
    return iter(found.values())


def usual(t: Tensor) -> bool:
    """Has data in the usual layout."""
    return t.layout == torch.strided and not t.is_nested and not t.is_meta and not isinstance(t, FakeTensor)


def plain(value, dtype: torch.dtype | None = None, noise: torch.Generator | None = None):
    """Copies in fresh contiguous memory that want gradients where the originals do; floats in ``dtype``, moved by one rounding of
    their own dtype where ``noise`` is given. Whole numbers that torch cannot take are floats."""

    def copy(t: Tensor) -> Tensor:
        if not usual(t):
            return t
        made = t.detach().as_subclass(Tensor).resolve_neg().resolve_conj()
        made = torch.empty(made.shape, dtype=made.dtype).copy_(made)
        if made.is_floating_point() and dtype is not None:
            size = torch.finfo(made.dtype).eps
            made = made.to(dtype)
            if noise is not None:
                made = made * (1.0 + size * (2.0 * torch.rand(made.shape, generator=noise, dtype=dtype) - 1.0))
        return made.requires_grad_(t.requires_grad)

    return walk(value, copy, number=lambda whole: float(whole) if abs(whole) < 10**300 else whole)


def _bits(t: Tensor):
    """Something that equals itself where the tensors have the same values."""
    if isinstance(t, FakeTensor) or t.is_meta:
        return None
    t = t.detach()
    if t.is_nested:
        return [_bits(part) for part in t.unbind()]
    t = t.to_dense() if t.layout != torch.strided else t
    t = t.as_subclass(Tensor).resolve_conj().resolve_neg()
    t = torch.empty(t.shape, dtype=t.dtype).copy_(t)
    return t.reshape(-1).view(torch.uint8).numpy().tobytes()


def state(value):
    """What must not change: shapes, strides, dtypes and bits of tensors, state of generators, other values by their words."""
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout == torch.strided and not value.is_nested else None
        version = None if value.is_inference() else value._version
        size = None if value.is_nested else tuple(value.shape)
        grad = None if not value.is_leaf or value.grad is None else _bits(value.grad)
        return ("tensor", size, strides, str(value.dtype), value.requires_grad, version, grad, _bits(value))
    if isinstance(value, torch.Generator):
        return ("generator", _bits(value.get_state()))
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype.str, value.tobytes())
    if isinstance(value, dict):
        return {name: state(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return (type(value).__name__, [state(part) for part in value])
    return (type(value).__name__, "" if callable(value) or " at 0x" in repr(value) else repr(value)[:200])


def changed(before: dict, after: dict, allowed: tuple[str, ...] = ()) -> list[str]:
    return [name for name in before if name not in allowed and before[name] != after[name]]


def words(value, depth: int = 0) -> str:
    """A short description."""
    if isinstance(value, Tensor):
        kind = "" if type(value) is Tensor else f" {type(value).__name__}"
        try:
            small = f" {value.detach().tolist()}" if usual(value) and value.numel() <= 4 else ""
        except Exception:
            small = ""
        size = "nested" if value.is_nested else tuple(value.shape)
        return f"{str(value.dtype)[6:]} {size}{kind}{small}{' grad' if value.requires_grad else ''}"
    if isinstance(value, list | tuple) and depth < 2:
        return f"{type(value).__name__}[{', '.join(words(part, depth + 1) for part in value)}]"
    if isinstance(value, torch.Generator):
        return "Generator"
    return repr(value)[:60]
