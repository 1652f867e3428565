"""The most similar rows of each row, found a block of similarities at a time."""

import torch
from torch import Tensor

from fastssl.distributed.neighbours import BLOCK_ELEMENTS
from fastssl.ops._register import define_composite

from .dot_products import in_given_dtype


def most_similar(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Similarities (..., M) -> the ``count`` largest ones and their places, (..., count); for one place the first among equals."""
    if count == 1:
        place = similarity.argmax(-1, keepdim=True)
        return similarity.gather(-1, place), place
    return similarity.topk(count, dim=-1)


def _of_groups(rows: Tensor, count: int, size: int) -> Tensor:
    """``nearest_in_groups`` where the similarities of a group fit a block: several groups at once."""
    groups = rows.view(-1, size, rows.shape[1])
    found = torch.empty(len(groups), size, count, dtype=torch.int64, device=rows.device)
    step = max(1, BLOCK_ELEMENTS // size**2)
    for first in range(0, len(groups), step):
        part = groups[first : first + step]
        similarity = part @ part.mT
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        found[first : first + step] = most_similar(similarity, count)[1]
    starts = torch.arange(0, len(rows), size, device=rows.device)
    return (found + starts[:, None, None]).view(-1, count)


def _of_large_groups(rows: Tensor, count: int, size: int) -> Tensor:
    """``nearest_in_groups`` where they do not: some rows of a group at a time."""
    found = torch.empty(len(rows), count, dtype=torch.int64, device=rows.device)
    step = max(1, BLOCK_ELEMENTS // size)
    room = torch.empty(min(step, size), size, dtype=rows.dtype, device=rows.device)  # one buffer: freed ones would pile up
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        for first in range(0, size, step):
            part = group[first : first + step]
            similarity = torch.mm(part, group.T, out=room[: len(part)])
            similarity[:, first:].diagonal().fill_(-torch.inf)
            found[start + first : start + first + step] = most_similar(similarity, count)[1] + start
    return found


def _nearest(rows: Tensor, count: int, size: int) -> Tensor:
    with torch.no_grad(), in_given_dtype(rows):
        return (_of_groups if size**2 <= BLOCK_ELEMENTS else _of_large_groups)(rows.contiguous(), count, size)


_op = define_composite(
    "nearest_in_groups",
    "(Tensor rows, SymInt count, SymInt size) -> Tensor",
    lambda rows, count, size: rows.new_empty((rows.shape[0], count), dtype=torch.int64),
    _nearest,
)


def nearest_in_groups(rows: Tensor, count: int, size: int) -> Tensor:
    """Places (N, count) of the rows most similar to each row, itself left out, among the ``size`` consecutive ones of its group.

    Rows (N, D) are float32 or float64, N a multiple of ``size``, and ``count`` is below ``size``. At most 2^22 similarities are
    held at once (one row of them where a group has more rows). A compiled graph does not look into it.
    """
    return _op(rows.detach(), count, size)
