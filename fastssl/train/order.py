"""Which training samples an epoch takes, and in which order."""

from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor
from torch.utils.data import DistributedSampler

from fastssl.train.samples import Samples


class Shuffled(DistributedSampler):
    """A sampler with another order for each epoch. The first pass leaves out the ``skip`` samples that an interrupted epoch had.

    ``order``: epoch -> the samples (N,) of all processes in their order, or None for each of them once in random order.
    """

    def __init__(
        self,
        dataset: Samples,
        *,
        replicas: int,
        rank: int,
        seed: int,
        epoch: int,
        skip: int,
        order: Callable[[int], Tensor | None],
    ):
        super().__init__(dataset, replicas, rank, seed=seed, drop_last=True)
        self.set_epoch(epoch)
        self.skip, self.order = skip, order

    def __iter__(self) -> Iterator[int]:
        skip, self.skip = self.skip, 0
        order = self.order(self.epoch)
        own = super().__iter__() if order is None else iter(order[self.rank : self.total_size : self.num_replicas].tolist())
        yield from islice(own, skip, None)
