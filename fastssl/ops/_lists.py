"""Lists of tensors that one launch updates in place: the checks, and layouts that a kernel can walk through as one array.

A kernel reads and writes position i of every list as one flat array in memory order, so the tensors of a position must fill their
memory without gaps or overlap and must have equal strides. ``laid_out`` brings other tensors into that form and back.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastssl.checks import check_data, check_dense, check_float_dtype, type_name

from ._register import _C, refuse_transforms

_increment_versions = getattr(_C, "bump_versions", torch.autograd.graph.increment_version)
_lists_agree: Any = getattr(_C, "lists_agree", None)


def as_list(op: str, name: str, value, *, local: bool = True) -> list[Tensor]:
    """A tensor or a sequence of tensors as a list. A DTensor counts as its local shard, unless ``local`` is False."""
    if isinstance(value, Tensor):
        value = [value]
    elif not isinstance(value, Sequence):
        try:
            value = list(value)
        except TypeError:
            raise TypeError(f"{op}: {name} must be a tensor or a sequence of tensors, got {type_name(value)}") from None
    for i, tensor in enumerate(value):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}[{i}] must be a tensor, got {type_name(tensor)}")
    return [t.to_local() if local and hasattr(t, "to_local") else t for t in value]


def check_lists(
    op: str, written: dict, read: dict, each: Callable = lambda op, name, value: value
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]], bool]:
    """Refuses lists that do not belong together; returns written and read lists, and whether a kernel can take them as they are.

    The arguments are tensors or sequences of tensors by name. Every list must have as many tensors as the first. A position has
    one shape; all tensors have one device and a float dtype (float64 goes with float64 only); and no memory is written twice, or
    written at one position and read at another. ``each(op, name, value)`` first sees every argument that is no list of plain
    tensors.
    """
    refuse_transforms(op)
    if _lists_agree and not torch.compiler.is_compiling() and _lists_agree([*written.values()], [*read.values()]):
        return written, read, True
    written, read = ({name: as_list(op, name, each(op, name, value)) for name, value in lists.items()} for lists in (written, read))
    read = {name: [_resolved(tensor) for tensor in tensors] for name, tensors in read.items()}
    lists = written | read
    (first_name, first), *others = lists.items()
    if not first:
        raise ValueError(f"{op}: {first_name} must hold at least one tensor")
    for name, tensors in others:
        if len(tensors) != len(first):
            raise ValueError(f"{op}: {name} must hold {len(first)} tensors, as many as {first_name}, got {len(tensors)}")
    for name, tensors in lists.items():
        for i, (tensor, like) in enumerate(zip(tensors, first, strict=True)):
            _check_position(op, f"{name}[{i}]", tensor, f"{first_name}[{i}]", like, first[0])
            if name in written:
                check_writable(op, f"{name}[{i}]", tensor)
            check_stored(op, f"{name}[{i}]", tensor)
    check_apart(op, written, read, "pass tied tensors once")
    return written, read, all(_walkable([tensors[i] for tensors in lists.values()]) for i in range(len(first)))


def _check_position(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor, anchor: Tensor) -> None:
    check_dense(op, name, tensor)
    check_float_dtype(op, name, tensor)
    if (tensor.dtype == torch.float64) != (like.dtype == torch.float64):
        raise TypeError(f"{op}: float64 stands with float64 only, got {like_name} {like.dtype} and {name} {tensor.dtype}")
    if tensor.shape != like.shape:
        shapes = f"{tuple(like.shape)} and {tuple(tensor.shape)}"
        raise ValueError(f"{op}: {like_name} and {name} must have the same shape, got {shapes}")
    if tensor.device != anchor.device:
        raise ValueError(f"{op}: all tensors must be on one device, got {anchor.device} and, in {name}, {tensor.device}")
    check_data(op, name, tensor, like_name, like)


def _resolved(tensor: Tensor) -> Tensor:
    """The values of a tensor that is a lazily negated or conjugated view, whose memory a kernel would read without the change."""
    plain = torch.compiler.is_compiling() or tensor.layout != torch.strided or tensor.is_nested
    return tensor if plain else tensor.resolve_neg().resolve_conj()


def check_writable(op: str, name: str, tensor: Tensor) -> None:
    """Refuses a tensor whose elements cannot each be written alone, by anyone here and now."""
    if overlaps_itself(tensor):
        how = f"strides {tensor.stride()} for shape {tuple(tensor.shape)}; pass a clone"
        raise ValueError(f"{op}: {name} must not be expanded or lie over itself, since it is written, got {how}")
    if torch.compiler.is_compiling():
        return
    if tensor.is_neg() or tensor.is_conj():
        raise TypeError(f"{op}: {name} must not be a lazily negated view, since it is written; pass resolve_neg() of it")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{op}: {name} must not be an inference tensor outside torch.inference_mode(); pass a clone")
    if is_traceable_wrapper_subclass(tensor):
        raise TypeError(f"{op}: {name} must be a plain tensor, since it is written, got {type_name(tensor)}")


def check_stored(op: str, name: str, tensor: Tensor) -> None:
    """Refuses a tensor whose storage has been freed or cut short while the tensor still has its size."""
    if torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor) or is_traceable_wrapper_subclass(tensor):
        return
    wanted = (tensor.storage_offset() + _reach(tensor)) * tensor.element_size()
    if tensor.numel() and tensor.untyped_storage().nbytes() < wanted:
        got = f"{wanted} bytes, got {tensor.untyped_storage().nbytes()}: it was freed or resized"
        raise ValueError(f"{op}: {name} must have a storage of at least {got}")


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements have the same place in memory."""
    reach = 0  # of the dimensions so far
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return tensor.numel() > 0 and (stride == 0 or _meets_itself(tensor))
            reach += (size - 1) * stride
    return False


def _meets_itself(tensor: Tensor) -> bool:
    """``overlaps_itself`` by counting places, for strides that are not those of rows within rows."""
    if _reach(tensor) < tensor.numel():
        return True
    along = [range(0, size * stride, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return len({sum(place) for place in itertools.product(*along)}) < tensor.numel()


def _reach(tensor: Tensor) -> int:
    """The number of elements from the first place in memory to the one after the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _span(tensor: Tensor) -> tuple[Any, Any, Any]:
    """(space, first byte, byte after the last) of what the tensor may touch; a fake tensor has no address, but a storage."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        space, begin = tensor.untyped_storage()._cdata, tensor.storage_offset() * tensor.element_size()
    else:
        space, begin = 0, tensor.data_ptr()
    return space, begin, begin + _reach(tensor) * tensor.element_size()


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors may have a byte in common."""
    (space, begin, end), (other, first, last) = _span(a), _span(b)
    return space == other and begin < last and first < end


def check_apart(op: str, written: dict[str, list[Tensor]], read: dict[str, list[Tensor]], advice: str) -> None:
    """Refuses a call that writes a byte at two places, or writes it at one position and reads it at another."""
    if torch.compiler.is_compiling():
        return
    spans, lists = [], written | read
    for kind, group in (("written", written), ("read", read)):
        for name, tensors in group.items():
            whole = [(i, t) for i, t in enumerate(tensors) if t.numel() and not is_traceable_wrapper_subclass(t)]
            spans += [(*_span(t), kind, i, name) for i, t in whole]
    spans.sort(key=lambda span: span[:3])
    open_spans: list[tuple] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[0] == span[0] and other[2] > span[1]]
        for other in open_spans:
            same_place = other[4] == span[4] and other[1:3] == span[1:3] and other[3] != span[3]
            if "written" in (other[3], span[3]) and not same_place:
                both = sorted((list(lists).index(name), i, name) for *_, i, name in (other, span))
                pair = " and ".join(f"{name}[{i}]" if len(lists[name]) > 1 else name for _, i, name in both)
                raise ValueError(f"{op}: {pair} share memory; {advice}")
        open_spans.append(span)


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _walkable(tensors: list[Tensor]) -> bool:
    """Whether tensors are dense and have equal strides wherever a dimension has more than one entry."""
    first = tensors[0]
    wide = [d for d, size in enumerate(first.shape) if size > 1]
    return first.numel() == 0 or (_dense(first) and all(t.stride(d) == first.stride(d) for t in tensors for d in wide))


@contextmanager
def laid_out(written: dict[str, list[Tensor]], read: dict[str, list[Tensor]]) -> Iterator[dict[str, list[Tensor]]]:
    """The lists with contiguous copies at the positions that need them; at the end, written copies go back to their places."""
    lists = {name: list(tensors) for name, tensors in (written | read).items()}
    back = []
    for i in range(len(next(iter(lists.values())))):
        if _walkable([tensors[i] for tensors in lists.values()]):
            continue
        for name, tensors in lists.items():
            original, tensors[i] = tensors[i], tensors[i].contiguous()
            if name in written and tensors[i] is not original:
                back.append((original, tensors[i]))
    yield lists
    for original, copy in back:
        original.copy_(copy)


def run_in_place(launch: Callable[[dict], None], written: dict, read: dict, as_they_are: bool) -> None:
    """Calls ``launch`` with the lists of ``check_lists`` by name, laid out for a kernel, and tells autograd what has changed."""
    if as_they_are:
        launch(written | read)
    else:
        with laid_out(written, read) as lists:
            launch(lists)
    for tensors in written.values():
        bump_versions(tensors)


def check_scalars(op: str, like_name: str, like: Tensor, **scalars) -> None:
    """Refuses scalars that are fake tensors where the lists are not, or the reverse."""
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            check_data(op, name, value, like_name, like)


def bump_versions(tensors: list[Tensor]) -> None:
    """Tells autograd that the tensors changed in place, as torch's own in-place ops do.

    Tensors that were made in inference mode have no version; outside of that mode ``check_lists`` and ``check_writable`` let none
    through.
    """
    if torch.compiler.is_compiling():
        return
    if torch.is_inference_mode_enabled():
        tensors = [t for t in tensors if not t.is_inference()]
    _increment_versions(tensors)
