"""SwAV's queue of older embeddings, which balance the assignments of a small batch."""

import torch
from torch import Tensor, distributed, nn

from fastssl.distributed import gather_rows, world_size
from fastssl.functional import queue_push_

GLOBAL = 2  # crops of an image that a queue holds embeddings of


def rank() -> int:
    return distributed.get_rank() if world_size() > 1 else 0


class CropQueue(nn.Module):
    """A method with a queue of the embeddings of two global crops, in the state dict; ``queue`` is None where it has no rows."""

    queue: Tensor | None
    queue_pointer: Tensor
    queue_seen: Tensor

    def add_queue(self, queue_size: int, width: int) -> None:
        self.register_buffer("queue", torch.zeros(queue_size, GLOBAL * width) if queue_size else None)
        for name in ("queue_pointer", "queue_seen") if queue_size else ():
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def full(self) -> Tensor:
        """Whether the queue has been filled once: () bool."""
        assert self.queue is not None
        return self.queue_seen >= len(self.queue)

    def older(self, z: Tensor) -> Tensor:
        """This process's share (2, Q', D) of the queue in the dtype of z (2, B, D); Q' may be 0 where processes are many."""
        assert self.queue is not None
        own = self.queue.tensor_split(world_size())[rank()].to(z.dtype)
        return own.view(len(own), GLOBAL, z.shape[2]).transpose(0, 1)

    def push(self, z: Tensor) -> None:
        """Puts z (2, B, D) of all processes onto the queue, in the order of the ranks."""
        assert self.queue is not None
        new = gather_rows(z.transpose(0, 1).flatten(1))
        queue_push_(self.queue, self.queue_pointer, new, layout="kd")
        self.queue_seen.add_(len(new))
