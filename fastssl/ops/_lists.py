"""Lists of tensors that one launch updates in place: refusals in words, and layouts that a kernel can walk as one array.

A kernel reads and writes position i of every list as one flat array in memory order, so the tensors of a position must fill
their memory without gaps or overlap and have equal strides. ``laid_out`` brings others to that form and back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ._checks import FLOATS, _kind
from ._register import _C


def as_list(op: str, name: str, value) -> list[Tensor]:
    """A tensor or a sequence of tensors -> a list; a DTensor counts as its local shard."""
    if isinstance(value, Tensor):
        value = [value]
    elif not isinstance(value, Sequence):
        try:
            value = list(value)
        except TypeError:
            raise TypeError(f"{op}: {name} must be a tensor or a sequence of tensors, got {_kind(value)}") from None
    for i, tensor in enumerate(value):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}[{i}] must be a tensor, got {_kind(tensor)}")
    return [t.to_local() if hasattr(t, "to_local") else t for t in value]


def check_lists(op: str, written: dict, read: dict) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]], bool]:
    """Tensors or sequences of tensors by name -> written and read lists, and whether a kernel can take them as they are.

    Refuses lists that do not belong together. Every list must have as many tensors as the first; a position has one shape, all
    tensors one device and a float dtype (float64 stands with float64 only), and no memory is written twice, or written at one
    position and read at another.
    """
    if _C is not None and not torch.compiler.is_compiling() and _C.lists_agree([*written.values()], [*read.values()]):
        return written, read, True
    written, read = ({name: as_list(op, name, value) for name, value in lists.items()} for lists in (written, read))
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
    if not torch.compiler.is_compiling():
        _check_memory(op, written, read)
    return written, read, all(_walkable([tensors[i] for tensors in lists.values()]) for i in range(len(first)))


def _check_position(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor, anchor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
    if (tensor.dtype == torch.float64) != (like.dtype == torch.float64):
        raise TypeError(f"{op}: float64 stands with float64 only, got {like_name} {like.dtype} and {name} {tensor.dtype}")
    if tensor.shape != like.shape:
        shapes = f"{tuple(like.shape)} and {tuple(tensor.shape)}"
        raise ValueError(f"{op}: {like_name} and {name} must have the same shape, got {shapes}")
    if tensor.device != anchor.device:
        raise ValueError(f"{op}: all tensors must be on one device, got {anchor.device} and, in {name}, {tensor.device}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got {tensor.layout}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and the one after the last that the tensor may touch."""
    begin = tensor.data_ptr()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.element_size()


def _check_memory(op: str, written: dict[str, list[Tensor]], read: dict[str, list[Tensor]]) -> None:
    """No byte is written at two places of the call, nor written at one position and read at another."""
    if next(iter(written.values()))[0].is_meta:
        return
    spans = []
    for kind, lists in (("written", written), ("read", read)):
        for name, tensors in lists.items():
            spans += [(*_span(t), kind, i, name) for i, t in enumerate(tensors) if t.numel()]
    spans.sort(key=lambda span: span[:2])
    open_spans: list[tuple] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        for other in open_spans:
            same_place = other[3] == span[3] and other[:2] == span[:2] and other[2] != span[2]
            if "written" in (other[2], span[2]) and not same_place:
                pair = f"{other[4]}[{other[3]}] and {span[4]}[{span[3]}]"
                raise ValueError(f"{op}: {pair} share memory; pass tied tensors once")
        open_spans.append(span)


def _dense(tensor: Tensor) -> bool:
    """The elements fill their memory without gaps or overlap."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _walkable(tensors: list[Tensor]) -> bool:
    """Dense, and equal strides wherever a dimension has more than one entry."""
    first = tensors[0]
    wide = [d for d, size in enumerate(first.shape) if size > 1]
    return first.numel() == 0 or (_dense(first) and all(t.stride(d) == first.stride(d) for t in tensors for d in wide))


@contextmanager
def laid_out(written: dict[str, list[Tensor]], read: dict[str, list[Tensor]]) -> Iterator[dict[str, list[Tensor]]]:
    """The lists with contiguous copies at the positions that need them; written copies go back to their places at the end."""
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


def bump_versions(tensors: list[Tensor]) -> None:
    """Tells autograd that the tensors changed in place, as torch's own in-place ops do."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tensors)
