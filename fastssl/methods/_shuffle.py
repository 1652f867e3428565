"""Images shuffled across processes, so that batch statistics do not tell which key belongs to a query."""

import torch
from torch import Tensor, distributed

from fastssl.distributed import gather_rows, world_size


def shuffled(images: Tensor) -> tuple[Tensor, Tensor]:
    """images (B, ...) -> this process's share of all processes' images in one random order, and the places of its own images.

    The order is rank 0's. The share has B rows where all batches are as large; after ``gather_rows`` of what becomes of the shares,
    row ``places[i]`` is that of ``images[i]``.
    """
    everyone, world = gather_rows(images), world_size()
    order = torch.randperm(len(everyone), device=images.device)
    rank, first = 0, 0
    if world > 1:
        rank = distributed.get_rank()
        distributed.broadcast(order, 0)
        first = sum(gather_rows(torch.tensor([len(images)], device=images.device))[:rank].tolist())
    return everyone[order.tensor_split(world)[rank]], order.argsort()[first : first + len(images)]
