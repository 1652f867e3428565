"""The data and the small encoder of the examples: scikit-learn's handwritten digits, which come with it and need no download."""

import functools

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


@functools.cache
def _load() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    return tuple(map(torch.as_tensor, load_digits(return_X_y=True)))


def digits(count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` digits, from the start again after 1,797: images (count, 3, 32, 32) in [0, 1], labels (count,) int64."""
    images, labels = _load()
    chosen = torch.arange(count) % len(labels)
    images = images.to(torch.get_default_dtype())[chosen].view(-1, 1, 8, 8) / 16
    return nn.functional.interpolate(images.expand(-1, 3, -1, -1), scale_factor=4.0), labels[chosen].long()


def augment(images: Tensor) -> Tensor:
    """The images (N, C, H, W), each moved by up to 4 pixels, in another contrast, with noise."""
    rows, columns = (torch.randint(-4, 5, (2, len(images))) + torch.arange(images.shape[2])[:, None, None]).unbind(1)
    rows, columns = rows.T % images.shape[2], columns.T % images.shape[3]
    moved = images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return moved * (0.6 + 0.8 * torch.rand(len(images), 1, 1, 1)) + 0.1 * torch.randn_like(images)


def two_views(count: int) -> TensorDataset:
    """(view, other view, label) of each of ``count`` digits, augmented once for all."""
    images, labels = digits(count)
    return TensorDataset(augment(images), augment(images), labels)


def small_backbone(width: int = 128) -> nn.Sequential:
    """Images (N, 3, 32, 32) -> features (N, width), in place of a ResNet."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=4, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, width),
    )
