"""Data sets of the command line: images (B, C, R, R) and int64 labels (B,), taken a batch at a time.

Images are uint8; those of folders with deeper files float32 in [0, 1]. C is 3, or ``--channels``. R is the side S of the views, in
folders ``round(1.25 * S)``: an augmentation crops from it, ``evaluate.centre(images, S)`` takes its middle.

``photos``       crops of photographs and micrographs that scikit-image ships; class = picture; train left, test right
``digits``       the 8 x 8 handwritten digits of scikit-learn
``folder:PATH``  image files; class = subfolder; ``layout.py`` finds them and their split, ``read.py`` reads them

A data set answers ``__getitems__(indices)`` with one collated batch, so a ``DataLoader`` needs no per-image collation.
"""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from fastssl._options import closest
from fastssl.train import UsageError, warn
from fastssl.train.folder import FolderImages, Look, clipped_line, unread_line
from fastssl.train.layout import find_images, shortened
from fastssl.train.read import grey
from fastssl.train.samples import ImageSamples, Samples, some_of_each

PHOTOS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "cell": "cell.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "horse": "horse.png",
    "Hubble field": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
    "tissue": "ihc.png",
}
PHOTOS_SEED = 0
PHOTOS_SPLIT = 0.65  # train crops lie left of this share of the width, test crops right of it
PHOTOS_TRAIN, PHOTOS_TEST = 400, 100  # crops of each picture
FOLDER_MARGIN = 1.25  # folder images are decoded this much larger than the view, so that crops keep detail


class TensorImages(ImageSamples):
    """Images in memory: images (N, C, S, S) uint8, labels (N,) int64, class_names of the labels."""

    def __init__(self, images: Tensor, labels: Tensor, class_names: tuple[str, ...]):
        self.images, self.labels, self.class_names = images, labels, class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        index = torch.as_tensor(indices)
        return self.images[index], self.labels[index], *([index] if self.gives_index else [])


class FewLabels(ImageSamples):
    """``whole`` where only ``per_class`` samples of each class, chosen by ``seed``, have their label; that of all others is -1.

    The first quarter of each batch is replaced by labelled samples, so that none is without (Tarvainen and Valpola 2017, appendix).
    Which ones follows from the indices alone: the same in every worker and after a resume.
    """

    def __init__(self, whole: ImageSamples, per_class: int, seed: int):
        self.whole, self.labels, self.class_names = whole, whole.labels, whole.class_names
        self.per_class, self.seed = per_class, seed
        whole.gives_index = True
        self.known = some_of_each(whole.labels, per_class, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.whole)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        quarter = -(-len(indices) // 4)
        labelled = [int(self.known[i % len(self.known)]) for i in indices[:quarter]]
        images, labels, index = self.whole.__getitems__(labelled + indices[quarter:])
        return images, labels.where(torch.isin(index, self.known), -1), *([index] if self.gives_index else [])

    def corrupt_files(self) -> list[str]:
        return self.whole.corrupt_files()


@dataclass(frozen=True)
class ImageData:
    """One data set: its two halves, the side of its views, and what augmentation may do to it without changing the class."""

    name: str
    train: ImageSamples
    test: ImageSamples
    image_size: int
    mirror: bool = True
    colour: bool = True
    hue: bool = True
    channels: int = 3
    notes: tuple[str, ...] = ()  # what was read, for the first line of a run

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def summary(self) -> str:
        known = f" ({len(self.train.known)} labelled)" if isinstance(self.train, FewLabels) else ""
        counts = f"{len(self.train)} training{known} and {len(self.test)} test images of {self.image_size} x {self.image_size}"
        shape = "" if self.channels == 3 else f" x {self.channels} channels"
        names = f"{len(self.class_names)} classes ({shortened(self.class_names)})" if len(self.class_names) > 1 else "no classes"
        return "; ".join([f"{counts}{shape}, {names}", *self.notes])

    @property
    def labelled(self) -> bool:
        """Whether kNN and linear probe mean anything: two classes at least to learn from, and one of them to test on."""
        return len(self.train.labels.unique()) > 1 and bool(torch.isin(self.test.labels, self.train.labels).any())


def shipped_photos() -> dict[str, np.ndarray]:
    """The pictures (H, W, 3) uint8 that lie in the installed scikit-image, by name; what it would download is left out."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("--data photos needs scikit-image: pip install scikit-image")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    pictures = {}
    for name, file in PHOTOS.items():
        if not (folder / file).is_file():
            continue
        with Image.open(folder / file) as image:
            pixels = np.asarray(image)
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        pictures[name] = pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    if len(pictures) < 2:
        raise UsageError(f"--data photos: {folder} has {len(pictures)} of the {len(PHOTOS)} pictures, at least 2 are needed")
    return pictures


def photo_columns(width: int, size: int, train: bool) -> tuple[int, int]:
    """First and last left edge of the crops of a half; train crops end at the split, test crops begin there."""
    split = int(width * PHOTOS_SPLIT)
    return (0, split - size) if train else (split, width - size)


def photos(size: int = 32) -> ImageData:
    """Crops (3, size, size) of each picture, the same ones every time: 400 train crops and 100 test crops a picture."""
    pictures = shipped_photos()
    rng = np.random.default_rng(PHOTOS_SEED)
    halves = {}
    for train, count in ((True, PHOTOS_TRAIN), (False, PHOTOS_TEST)):
        crops = []
        for name, picture in pictures.items():
            height, width = picture.shape[:2]
            first, last = photo_columns(width, size, train)
            if last < first or height < size:
                raise UsageError(f"--image-size {size} is larger than a half of the picture '{name}' ({width} x {height})")
            tops, lefts = rng.integers(0, height - size + 1, count), rng.integers(first, last + 1, count)
            crops += [picture[y : y + size, x : x + size] for y, x in zip(tops, lefts, strict=True)]
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
        labels = torch.arange(len(pictures)).repeat_interleave(count)
        halves[train] = TensorImages(images, labels, tuple(pictures))
    # No hue jitter: on a CPU it is a fifth of a step (the way to HSV and back).
    return ImageData("photos", halves[True], halves[False], size, hue=False)


def digits(size: int = 32) -> ImageData:
    """scikit-learn's 1797 digits, enlarged to (3, size, size); every fifth is a test digit."""
    from sklearn.datasets import load_digits

    table = load_digits()
    grey = torch.from_numpy(table.images).float().mul_(255 / 16).unsqueeze(1)
    images = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear").round_().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(table.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    names = tuple(str(digit) for digit in range(10))
    train_half, test_half = TensorImages(images[~test], labels[~test], names), TensorImages(images[test], labels[test], names)
    return ImageData("digits", train_half, test_half, size, mirror=False, colour=False)


def in_channels(data: ImageData, channels: int) -> ImageData:
    """Colour images in memory, as they are or as grey ones."""
    if channels == 3:
        return data
    if channels != 1:
        raise UsageError(f"--channels {channels}: --data {data.name} has 3, or 1 as grey images")
    return replace(data, train=in_grey(data.train), test=in_grey(data.test), channels=1)


def in_grey(half: ImageSamples) -> TensorImages:
    """One band of images in memory."""
    assert isinstance(half, TensorImages)
    return TensorImages(grey(half.images), half.labels, half.class_names)


def folder(root: Path, size: int = 64, channels: int = 3, pixel_range: tuple[float, float] | None = None) -> ImageData:
    """Image files below ``root``: class subfolders, or flat, or a training and a test part of either. Prints what to warn of."""
    layout = find_images(root)
    names = tuple(sorted({**layout.train, **layout.test}))
    decoded = round(size * FOLDER_MARGIN)

    def half(files: dict[str, list[Path]]) -> FolderImages:
        pairs = [(path, names.index(name)) for name in names for path in files.get(name, [])]
        return FolderImages([path for path, _ in pairs], [label for _, label in pairs], names, decoded, channels, pixel_range)

    train, test = half(layout.train), half(layout.test)
    look = Look(f"folder:{root}", [train, test])
    look.refuse()
    for line in layout.warnings + look.warnings():
        warn(line)
    return ImageData(f"folder:{root}", train, test, size, channels=channels, notes=tuple(layout.notes + look.notes()))


def load_data(spec: str, size: int | None = None, channels: int = 3, pixel_range: tuple[float, float] | None = None) -> ImageData:
    """The data set that ``--data`` names.

    Args:
        spec: "photos", "digits" or "folder:PATH".
        size: side S of the views in pixels, by default 32, or 64 of a folder. Images of a folder have ``round(1.25 * S)``.
        channels: number of channels of the images; "photos" and "digits" have 3 or 1.
        pixel_range: (LOW, HIGH) of files with more than 8 bits, which become 0 and 1.

    Returns:
        An ``ImageData``. Its halves ``train`` and ``test`` answer ``__getitems__(indices)`` with one batch: images (B, C, R, R) and
        labels (B,) int64.

    Raises:
        UsageError: there is no such data set, folder or image in it, or a file looked at does not fit ``channels`` and
            ``pixel_range``. Its text names the option of the command line.

    Examples:
        >>> data = load_data("digits", size=16)
        >>> len(data.train), len(data.test), data.train.__getitems__([0, 1])[0].shape
        (1438, 359, torch.Size([2, 3, 16, 16]))
    """
    if spec.startswith("folder:"):
        return folder(Path(spec.removeprefix("folder:")).expanduser(), size or 64, channels, pixel_range)
    known = {"photos": photos, "digits": digits}
    if spec not in known:
        hint = f"; did you mean folder:{spec}?" if Path(spec).is_dir() else closest(spec, known)
        raise UsageError(f"--data: unknown data set '{spec}'{hint or '; known: photos, digits, folder:PATH'}")
    if pixel_range is not None:
        warn(f"the pixel range changes nothing: --data {spec} has 8 bits, 0 to 255")
    return in_channels(known[spec](size or 32), channels)


def reading_warnings(data: Any) -> list[str]:
    """Lines about the files that could not be read, or whose pixels were clipped, so far."""
    halves = [getattr(half, "whole", half) for half in (data.train, data.test)]  # FewLabels is a view of another
    halves = [half for half in halves if isinstance(half, FolderImages)]
    total, lines = sum(map(len, halves)), []
    corrupt = [(half, file) for half in halves for file in half.corrupt_files()]
    if corrupt:
        lines.append(unread_line(len(corrupt), total, "files", [(file, half.reason(file)) for half, file in corrupt[:3]]))
    if clipped := [file for half in halves for file in half.clipped_files()]:
        lines.append(clipped_line(clipped, total, "files", halves[0].pixel_range))
    return lines


def classes_lost(data: Any) -> list[str]:
    """Classes of which no file can be read."""
    halves = [half for half in (getattr(half, "whole", half) for half in (data.train, data.test)) if isinstance(half, FolderImages)]
    if not halves:
        return []
    labels, corrupt = (torch.cat([getattr(half, name) for half in halves]) for name in ("labels", "corrupt"))
    return [name for i, name in enumerate(data.class_names) if (labels == i).any() and corrupt[labels == i].all()]


def batches(
    dataset: Samples | Subset, batch_size: int, *, sampler: Sampler | None = None, workers: int = 0, drop_last: bool = False
) -> DataLoader:
    """A loader of what ``dataset.__getitems__`` collates, such as (images, labels), in pinned memory where there is a GPU.

    Args:
        dataset: a half of what ``load_data`` returns, or another data set that is asked for whole batches.
        batch_size: samples in a batch.
        sampler: gives the order of the samples; by default they come in their own order.
        workers: processes that read; 0 reads in this process.
        drop_last: whether the rest that fills no batch is left out.

    Returns:
        A ``torch.utils.data.DataLoader``.

    Examples:
        >>> half = TensorImages(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64), ("none",))
        >>> [len(labels) for images, labels in batches(half, 4)]
        [4, 4, 2]
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_own_group,
    )


def limited(dataset: Samples, most: int) -> Samples | Subset:
    """``dataset``, or ``most`` of its images, evenly spaced."""
    count = len(dataset)
    return dataset if count <= most else Subset(dataset, torch.linspace(0, count - 1, most, dtype=torch.float64).long().tolist())


def _own_group(worker: int) -> None:
    """A signal to the whole group of a run (Ctrl-C, timeout) leaves its workers alone: they end when it has saved its state."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _as_is(batch: Any) -> Any:
    return batch
