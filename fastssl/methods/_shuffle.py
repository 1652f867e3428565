"""Keys of images that are shuffled across processes, so that batch statistics do not tell which key belongs to a query."""

import torch
from torch import Tensor, distributed, nn

from fastssl.distributed import gather_rows, world_size
from fastssl.momentum import MoCoQueue

from ._teacher import TeacherMethod


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


class ShuffledKeys(TeacherMethod):
    """A ``TeacherMethod`` with a queue, whose teacher sees the images in another order and the batch in parts."""

    queue: MoCoQueue
    bn_splits: int
    shuffle_bn: bool

    def unit(self, z: Tensor) -> Tensor:
        """z (N, D) to unit length, in the dtype of the queue."""
        return nn.functional.normalize(z.to(self.queue.queue.dtype), dim=1)

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """images (B, ...) -> the teacher's keys (B, D), of unit length and in order."""
        shuffles = self.shuffle_bn and self.training and (self.bn_splits > 1 or world_size() > 1)
        if not shuffles:
            return self.unit(self.in_parts(self.teacher, images))
        part, mine = shuffled(images)
        return gather_rows(self.unit(self.in_parts(self.teacher, part)))[mine]

    def in_parts(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """``encoder(images)``, in training with batch statistics of each of ``bn_splits`` parts of the batch."""
        parts = self.bn_splits if self.training else 1
        return torch.cat([encoder(part) for part in images.tensor_split(parts)]) if parts > 1 else encoder(images)
