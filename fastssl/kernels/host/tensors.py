"""New tensors for the launchers, several with one call.

``torch.empty`` costs the host 13,000 instructions and ``unbind`` 16,000, most of which parse arguments. In a small step, where the
GPU waits for the host, these calls were a fifth of all instructions.
"""

from typing import Any

import torch
from torch import Tensor

from fastssl.ops._register import _C

_new_tensors: Any = getattr(_C, "new_tensors", None)
_rows_of: Any = getattr(_C, "rows_of", None)
#: If False, torch makes the tensors one by one. Tests that fill new tensors set it to False.
batched = _new_tensors is not None


def new(like: Tensor, dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Empty tensors of these shapes on the device of ``like``."""
    if batched:
        return _new_tensors(like, dtype, *shapes)
    return tuple(torch.empty(shape, dtype=dtype, device=like.device) for shape in shapes)


def rows_of(matrix: Tensor) -> tuple[Tensor, ...]:
    """The R rows of a matrix (R, N), as views (N,)."""
    return _rows_of(matrix) if batched else matrix.unbind()
