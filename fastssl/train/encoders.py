"""The encoder of a finished run as a module of its own. The data that it learned from need not be there."""

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.methods._encoder import pooled
from fastssl.train import TrainConfig, UsageError
from fastssl.train.checkpoints import config_of, readable_checkpoint, restore_method
from fastssl.train.recipes import RECIPES
from fastssl.train.recipes._captions import CaptionSettings
from fastssl.train.recipes._clips import ClipSettings
from fastssl.train.recipes._images import MOST_PIXELS, FolderSettings

OF_IMAGES = (FolderSettings, ClipSettings, CaptionSettings)  # settings of the methods whose encoder takes images
LARGEST_DIFFERENCE = 1e-5  # between features that are the same, as a share of the largest


@dataclass(frozen=True)
class StoredHalf:
    """One half of a data set that is not read: how many samples it has."""

    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class StoredData:
    """What a checkpoint says of the images of its run, for a recipe that builds the method."""

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    train: Sized
    test: Sized


@dataclass(frozen=True)
class LoadedRun:
    """A run that was read from its checkpoint.

    Args:
        path: the checkpoint.
        checkpoint: what it holds.
        config: the settings of the run.
        method: the method with the weights of the checkpoint, in eval mode.
        encoder: the encoder that ``fastssl eval`` scores, in eval mode.
        warning: what is wrong with a newer checkpoint that was not taken, or "".
    """

    path: Path
    checkpoint: dict
    config: TrainConfig
    method: nn.Module
    encoder: "RunEncoder"
    warning: str = ""


class RunEncoder(nn.Module):
    """The encoder of a run: images (B, C, H, W) of pixels in [0, 1] -> features (B, D), those that ``fastssl eval`` scores.

    It subtracts the mean and divides by the standard deviation that the run used. H = W = ``image_size`` is what the run saw;
    convolutional encoders take other sizes too.

    Args:
        inner: the backbone, or, with ``alone=False``, the whole method, whose ``embed`` makes the features.
        method: name of the method.
        backbone_name: what ``--backbone`` named.
        image_size: side of the images in pixels.
        channels: number C of their channels.
        mean: number that is subtracted from the pixels.
        std: number that they are then divided by.
        role: "student", "teacher", or "encoder" where the method has one only.
        alone: whether the features are those of one backbone, which can be used without the method.

    Attributes:
        backbone: the backbone alone, from images that are normalised already; None where the features need the whole method.
        num_features: the number D.

    Examples:
        >>> import torch
        >>> from fastssl.train.encoders import RunEncoder
        >>> seen = {"image_size": 8, "channels": 1, "mean": 0.5, "std": 0.25}
        >>> encoder = RunEncoder(torch.nn.Flatten(), method="simclr", backbone_name="flat", **seen)
        >>> encoder(torch.full((2, 1, 8, 8), 0.75))[0, :3]
        tensor([1., 1., 1.])
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        method: str,
        backbone_name: str,
        image_size: int,
        channels: int,
        mean: float = 0.0,
        std: float = 1.0,
        role: str = "encoder",
        alone: bool = True,
    ):
        super().__init__()
        self.inner = inner
        self.method, self.backbone_name, self.role, self.alone = method, backbone_name, role, alone
        self.image_size, self.channels, self.mean, self.std = image_size, channels, mean, std
        self.num_features = 0  # until the first features are there

    @property
    def backbone(self) -> nn.Module | None:
        return self.inner if self.alone else None

    def normalised(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) in [0, 1] -> less ``mean``, over ``std``: what ``backbone`` takes."""
        return images if (self.mean, self.std) == (0.0, 1.0) else (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """The features of images.

        Args:
            images: (B, C, H, W) floating, pixels in [0, 1], C = ``channels``.

        Returns:
            (B, D) of the same dtype, D = ``num_features``.

        Raises:
            TypeError: ``images`` is no floating tensor.
            ValueError: it has another shape.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"RunEncoder: images must be a floating tensor of pixels in [0, 1], got {kind}")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"RunEncoder: images must have shape (B, {self.channels}, H, W), got {tuple(images.shape)}")
        if not self.alone:
            return cast(Any, self.inner).embed(images).flatten(1)
        return pooled(self.inner(self.normalised(images)), images.shape[0], "RunEncoder")

    def read(self, path: str | Path, pixel_range: tuple[float, float] | None = None) -> Tensor:
        """A picture as ``fastssl eval`` shows it to the encoder.

        Args:
            path: an image file of any kind that ``fastssl train --data folder:PATH`` reads.
            pixel_range: (LOW, HIGH) of files with more than 8 bits, which become 0 and 1.

        Returns:
            (C, S, S) float32 in [0, 1], S = ``image_size``: the shorter side is scaled to 1.25 S, and the centre is cut out.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no picture, or has other channels.
        """
        from fastssl.train.augment import as_float
        from fastssl.train.data import FOLDER_MARGIN
        from fastssl.train.evaluate import centre
        from fastssl.train.read import Misfit, read_picture

        try:
            square = read_picture(Path(path), round(self.image_size * FOLDER_MARGIN), self.channels, pixel_range).square
        except (Misfit, SyntaxError) as error:
            raise ValueError(f"RunEncoder.read: {path}: {error}") from error
        return centre(as_float(square[None]), self.image_size)[0]

    def extra_repr(self) -> str:
        size = f"{self.channels} x {self.image_size} x {self.image_size}"
        return f"method={self.method}, backbone={self.backbone_name}, images={size}, features={self.num_features}"


def load_run(run: Path) -> LoadedRun:
    """Reads the checkpoint of a run and restores its method and its encoder on the CPU. Torch's generators stay as they are.

    Raises:
        UsageError: there is no checkpoint that can be used, or the method learns from something else than images.
    """
    path, checkpoint, warning = readable_checkpoint(run)
    config = config_of(checkpoint)
    with torch.random.fork_rng(devices=[]):
        method = restore_method(checkpoint, data_of(checkpoint, config, path), path).eval()
        encoder = encoder_of(method, config, image_size_of(checkpoint, path))
    return LoadedRun(path, checkpoint, config, method, encoder, warning)


def image_size_of(checkpoint: dict, path: Path) -> int:
    size = checkpoint["fastssl"].get("image_size")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST_PIXELS:
        raise UsageError(f"RUN {path}: its image size must be 1 to {MOST_PIXELS} pixels, got {size!r}")
    return size


def data_of(checkpoint: dict, config: TrainConfig, path: Path) -> Any:
    """What the recipe builds the method from: what the checkpoint says of the data, or the data where that does not suffice."""
    recipe = RECIPES[config.method]
    if not isinstance(config, OF_IMAGES):
        raise UsageError(
            f"RUN {path}: is one of {config.method}, which learns from {recipe.unit}, and only encoders of images leave"
        )
    size = image_size_of(checkpoint, path)
    if recipe.needs_data:
        return recipe.load(config)
    stored = checkpoint["fastssl"].get("data")
    half = stored.get("train") if isinstance(stored, dict) else None
    count, classes = (half.get("count"), half.get("classes")) if isinstance(half, dict) else (None, None)
    longest = max((len(value) for value in checkpoint["state_dict"].values() if value.ndim), default=0)
    count = min(count, longest) if isinstance(count, int) and count > 0 else config.batch_size  # what has a row for each is there
    names = tuple(map(str, classes)) if isinstance(classes, list) and classes else ("",)
    return StoredData(config.data, size, config.channels, names, StoredHalf(count), StoredHalf(0))


@torch.no_grad()
def encoder_of(method: nn.Module, config: TrainConfig, image_size: int) -> RunEncoder:
    """The encoder of a method in eval mode: its backbone, where that alone gives the features that are scored."""
    place = RECIPES[config.method].encoder
    about: dict[str, Any] = {"method": config.method, "backbone_name": config.backbone, "image_size": image_size}
    about |= {"channels": config.channels, "role": "student" if hasattr(method, "teacher") else "encoder"}
    images = torch.rand(2, config.channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if place:
        scale = {"mean": getattr(method, "pixel_mean", 0.0), "std": getattr(method, "pixel_std", 1.0)}
        role = "teacher" if place.startswith("teacher.") else about["role"]
        encoder = RunEncoder(part_of(method, place), **about | scale | {"role": role}).eval()
        features = encoder(images)
        if not hasattr(method, "embed") or same(features, cast(Any, method).embed(images)):
            encoder.num_features = features.shape[1]
            return encoder
    encoder = RunEncoder(method, **about, alone=False).eval()
    encoder.num_features = encoder(images).shape[1]
    return encoder


def part_of(method: nn.Module, place: str) -> nn.Module:
    """The module at a dotted place, which may lead through properties."""
    found: Any = method
    for name in place.split("."):
        found = getattr(found, name)
    return found


def difference(features: Tensor, others: Tensor) -> float:
    """The largest difference of features (B, D), as a share of the largest of ``others``; infinite where the shapes differ."""
    if features.shape != others.shape:
        return float("inf")
    gap = (features.double() - others.double()).abs().max() / others.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float("inf") if gap.isnan() else gap.item()


def same(features: Tensor, others: Tensor) -> bool:
    return difference(features, others) <= LARGEST_DIFFERENCE
