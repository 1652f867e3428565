"""The most similar rows of each row in plain PyTorch, found a block of similarities at a time."""

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 22  # similarities that are held at once: 16 MiB of float32


def _places(similarity: Tensor, count: int) -> Tensor:
    """Similarities (..., M) -> the places (..., count) of the largest ones; for one place the first among equals."""
    if count == 1:
        return similarity.argmax(-1, keepdim=True)
    return similarity.topk(count, dim=-1).indices


def _of_groups(rows: Tensor, count: int, size: int) -> Tensor:
    """``nearest_in_groups`` where the similarities of a group fit a block: several groups at once."""
    groups = rows.view(-1, size, rows.shape[1])
    step = max(1, BLOCK_ELEMENTS // size**2)
    found = []
    for part in groups.split(step):
        similarity = part @ part.mT
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        found.append(_places(similarity, count))
    if len(groups) == 1:
        return found[0].view(-1, count)
    starts = torch.arange(0, len(rows), size, device=rows.device)
    return (torch.cat(found) + starts[:, None, None]).view(-1, count)


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
            found[start + first : start + first + step] = _places(similarity, count) + start
    return found


def nearest_in_groups(rows: Tensor, count: int, size: int) -> Tensor:
    """rows (N, D) -> places (N, count) of the rows most similar to each, among the ``size`` consecutive ones of its group."""
    with torch.autocast(rows.device.type, enabled=False):
        return (_of_groups if size**2 <= BLOCK_ELEMENTS else _of_large_groups)(rows.contiguous(), count, size)
