"""Contract of the op that finds the most similar rows of each row.

    ids_{i,1} .. ids_{i,k} = the k rows j of the group of i, j != i, with the largest <x_i, x_j>, that with the largest first

Groups are ``size`` consecutive rows. s_ij = s_ji: on a CPU a tile of products serves its rows and its columns while it is in the
cache, and N D size floating-point operations are enough; on a GPU a block of 2^22 products at a time is multiplied, read and
forgotten, with twice as many. Bytes: N D elements read, N k places of 8 bytes written.
"""

import torch
from torch import Tensor

from ._register import define_op

_op = define_op(
    "nearest_in_groups",
    "(Tensor rows, SymInt count, SymInt size) -> Tensor",
    lambda rows, count, size: rows.new_empty((rows.shape[0], count), dtype=torch.int64),
    "nearest_in_groups",
)


def nearest_in_groups(rows: Tensor, count: int, size: int) -> Tensor:
    """Places (N, count) of the rows most similar to each row, itself left out, among the ``size`` consecutive ones of its group.

    Rows (N, D) are float32 or float64 of length 1 at most, N a multiple of ``size``, and ``count`` is below ``size``. A row that is
    not finite is the most similar one to all others.
    """
    return _op(rows.detach(), count, size)
