"""What a data set of ``fastssl train`` is: it answers a list of indices with one collated batch."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Samples(Dataset):
    """A data set that is asked for whole batches, so that a ``DataLoader`` has nothing to collate."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """The samples at ``indices``: a tuple of tensors with a row for each."""
        raise NotImplementedError


class ImageSamples(Samples):
    """Images (B, C, R, R) and their labels (B,) int64, of N images in all."""

    labels: Tensor  # (N,) int64
    class_names: tuple[str, ...]
    gives_index = False  # whether a batch also holds the (B,) int64 indices of its samples, for banks with a row for each

    def corrupt_files(self) -> list[str]:
        """The files that could not be read so far."""
        return []


def some_of_each(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices of ``per_class`` samples of each class, drawn at random; all of a class that has fewer.

    The same state of ``generator`` gives with a smaller ``per_class`` a part of them.

    Examples:
        >>> chosen = some_of_each(torch.tensor([0, 0, 1, 1, 1]), 2, torch.Generator().manual_seed(0))
        >>> len(chosen), sorted(chosen[:2].tolist())
        (4, [0, 1])
    """
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    return torch.cat([order[shuffled == label][:per_class] for label in shuffled.unique()])
