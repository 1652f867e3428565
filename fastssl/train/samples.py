"""What a data set of ``fastssl train`` is: it answers a list of indices with one collated batch."""

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
