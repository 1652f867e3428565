"""New tensors for the launchers, several with one call.

``torch.empty`` takes the host 13,000 instructions and ``unbind`` 16,000, most of them to read arguments; in a small step, where the
GPU waits for the host, they were a fifth of all.
"""

import torch
from torch import Tensor

from fastssl.ops._register import _C

#: False: by torch itself, one by one. Tests that fill new tensors set it.
batched = hasattr(_C, "new_tensors")


def new(like: Tensor, dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Empty tensors of these shapes on the device of ``like``."""
    if batched:
        return _C.new_tensors(like, dtype, *shapes)
    return tuple(torch.empty(shape, dtype=dtype, device=like.device) for shape in shapes)


def rows_of(matrix: Tensor) -> tuple[Tensor, ...]:
    """(R, N) -> R views (N,)."""
    return _C.rows_of(matrix) if batched else matrix.unbind()
