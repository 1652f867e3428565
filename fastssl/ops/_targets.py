"""Arguments of the ops on logits over prototypes: temperatures, centres and potentials, heads.

Messages name the op, the argument, what was expected and what was given. No tensor data is read on a GPU.
"""

import math

import torch
from torch import Tensor

from fastssl.checks import (
    accumulator_dtype,
    as_python,
    check_constant,
    check_dense,
    check_float_dtype,
    check_scalar,
    is_whole,
    readable,
    traced,
)

from ._patches import check_device


def check_temperature(op: str, name: str, value, like: Tensor) -> None:
    """A number above 0, or a one-element float tensor of such a value, which is looked at on a CPU alone."""
    check_scalar(op, name, value, like, zero=False)
    check_constant(op, name, value)
    if isinstance(value, Tensor):
        if not readable(value):
            return
        value = float(value)
    if value <= 0:
        raise ValueError(f"{op}: {name} must be above 0, got {value}")


def on_device(values: tuple, like: Tensor) -> Tensor:
    """Checked numbers and one-element tensors as one tensor (n,) in the ``accumulator_dtype`` of ``like``; no host waits for it."""
    dtype = accumulator_dtype(like)
    if readable(like) and not any(isinstance(v, Tensor) for v in values):
        return torch.tensor([float(v) for v in values], dtype=dtype)

    def scalar(value: float | Tensor) -> Tensor:
        value = traced(value, like)
        return value.detach().to(dtype).reshape(()) if isinstance(value, Tensor) else like.new_full((), float(value), dtype=dtype)

    return torch.stack([scalar(value) for value in values])


def check_heads(op: str, heads, columns_name: str, columns: int) -> list[int]:
    """Sizes of consecutive segments of the columns, each at least 1, which together are all of them."""
    if heads is None:
        return [columns]
    if not isinstance(heads, (list, tuple)) or not heads or not all(is_whole(size) for size in heads):
        raise TypeError(f"{op}: heads must be a list of whole numbers, got {heads!r}")
    sizes = [as_python(size) for size in heads]
    if min(sizes) < 1 or sum(sizes) != columns:
        raise ValueError(
            f"{op}: heads must be sizes of at least 1 that add up to the {columns} columns of {columns_name}, got {sizes}"
        )
    return sizes


def column_biases(op: str, teacher: Tensor, center, potential) -> tuple[Tensor | None, int]:
    """potential - center as (G, K) in the accumulator dtype of ``teacher`` (..., K) and ``inner``: row m has bias (m // inner) % G.

    Each of the two is None, or broadcastable to ``teacher`` with a last dimension of K.
    """
    dtype = accumulator_dtype(teacher)
    total = None
    for name, value, sign in (("center", center, -1.0), ("potential", potential, 1.0)):
        if value is None:
            continue
        check_dense(op, name, value, "a float tensor (..., {})", teacher.shape[-1])
        check_float_dtype(op, name, value)
        check_constant(op, name, value)
        shape = tuple(value.shape)
        front = teacher.dim() - len(shape)
        fits = front >= 0 and all(a in (1, b) for a, b in zip(shape, teacher.shape[front:], strict=True))
        if not fits or not shape or shape[-1] != teacher.shape[-1]:
            wanted = (
                f"a shape that broadcasts to that of the teacher's logits, {tuple(teacher.shape)}, with the last dimension in full"
            )
            raise ValueError(f"{op}: {name} must have {wanted}, got {shape}")
        check_device(op, name, value, "teacher", teacher)
        part = value.detach().to(dtype).reshape((1,) * front + shape) * sign
        total = part if total is None else total + part
    if total is None:
        return None, 1
    sizes = total.shape[:-1]
    whole = [d for d, size in enumerate(sizes) if size > 1]
    if not whole:
        return total.reshape(1, -1), 1
    first, last = whole[0], whole[-1]
    rows = teacher.shape[first : last + 1]
    return total.expand(*sizes[:first], *rows, *sizes[last + 1 :], total.shape[-1]).reshape(-1, total.shape[-1]), math.prod(
        teacher.shape[last + 1 : -1]
    )
