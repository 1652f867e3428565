"""The operands of a launch in a memory layout and a precision that the tile kernels read."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fastssl.ops._operands import SigmoidPair, Similarity

from .config import float32_precision
from .tf32 import rounded_pair

_Operands = TypeVar("_Operands", Similarity, SigmoidPair)


def dense_rows(t: Tensor) -> Tensor:
    """t (R, D), copied unless its rows are dense and 128 of them lie within the 32-bit offsets of a tile."""
    return t if t.stride(1) == 1 and t.stride(0) < 1 << 23 else t.contiguous()


def dense(t: Tensor | None) -> Tensor | None:
    """A vector, copied unless it is dense; None stays None."""
    return t if t is None else t.contiguous()


def dense_either_way(t: Tensor) -> Tensor:
    """t (R, D), copied unless its rows or its columns are dense, so that a queue stored (D, M) is read in its own memory layout.
    The strides must let 32-bit offsets reach every element of a tile."""
    return t if t.stride(0) == 1 and t.stride(1) < 1 << 23 else dense_rows(t)


def laid_out(operands: Similarity, columns: Callable[[Tensor], Tensor] = dense_rows) -> Similarity:
    """The operands in a layout that the kernels read. ``columns`` makes the layout of y; where y is x, both stay the same
    tensor."""
    x, y, scale, scale_factor, x_id, y_id, y_bias, threshold = operands
    rows, row_ids = dense_rows(x), dense(x_id)
    y, y_id = rows if y is x else columns(y), row_ids if y_id is x_id else dense(y_id)
    return Similarity(rows, y, scale, scale_factor, row_ids, y_id, dense(y_bias), dense(threshold))


def precision_of(x: Tensor) -> str:
    """Triton's input_precision for products of x."""
    return float32_precision() if x.dtype == torch.float32 else "ieee"


def in_precision(operands: _Operands, precision: str) -> _Operands:
    """The operands with x and y rounded as products in ``precision`` need them; y may be x."""
    if precision != "tf32":
        return operands
    x, y = rounded_pair(operands.x, operands.y)
    return operands._replace(x=x, y=y)
