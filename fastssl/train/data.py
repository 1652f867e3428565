"""Data sets of the command line: uint8 images (B, 3, S, S) and int64 labels (B,), taken a batch at a time.

``photos``       crops of photographs and micrographs that scikit-image ships; class = picture; train left, test right
``digits``       the 8 x 8 handwritten digits of scikit-learn
``folder:PATH``  image files; class = subfolder; ``train`` and ``test`` (or ``val``) subfolders are the split if present

A data set answers ``__getitems__(indices)`` with one collated batch, so a ``DataLoader`` needs no per-image collation.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from fastssl.train import UsageError

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
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FOLDER_TEST_SHARE = 5  # one file in five of each class is a test file where the folder has no split of its own
FOLDER_MARGIN = 1.25  # folder images are decoded this much larger than the view, so that crops keep detail


class TensorImages(Dataset):
    """Images in memory: images (N, 3, S, S) uint8, labels (N,) int64, class_names of the labels."""

    gives_index = False  # whether a batch also holds the (B,) int64 indices of its samples, for banks with a row for each

    def __init__(self, images: Tensor, labels: Tensor, class_names: tuple[str, ...]):
        self.images, self.labels, self.class_names = images, labels, class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        index = torch.as_tensor(indices)
        return self.images[index], self.labels[index], *([index] if self.gives_index else [])

    def corrupt_files(self) -> list[str]:
        return []


class FolderImages(Dataset):
    """Image files, decoded when asked for (in DataLoader workers): the shorter side to ``size``, then the centre square.

    A file that cannot be decoded is left out of its batch and marked in ``corrupt`` (N,) bool, which lies in shared memory,
    so that the main process sees what its workers met.
    """

    gives_index = False

    def __init__(self, paths: list[Path], labels: list[int], class_names: tuple[str, ...], size: int):
        self.paths, self.class_names, self.size = paths, class_names, size
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.corrupt = torch.zeros(len(paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        decoded = [(image, index) for index in indices if (image := self._decode(index)) is not None]
        index = torch.tensor([index for _, index in decoded], dtype=torch.int64)
        empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        images = torch.stack([image for image, _ in decoded]) if decoded else empty
        return images, self.labels[index], *([index] if self.gives_index else [])

    def _decode(self, index: int) -> Tensor | None:
        """(3, size, size) uint8, or None for a file that is no readable image."""
        if self.corrupt[index]:
            return None
        try:
            with Image.open(self.paths[index]) as image:
                image.draft("RGB", (2 * self.size, 2 * self.size))
                return to_square(image.convert("RGB"), self.size)
        except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files
            self.corrupt[index] = True
            return None

    def corrupt_files(self) -> list[str]:
        return [str(self.paths[i]) for i in self.corrupt.nonzero().flatten().tolist()]


class FewLabels(Dataset):
    """``whole`` where only ``per_class`` samples of each class, chosen by ``seed``, have their label; that of all others is -1.

    The first quarter of each batch is replaced by labelled samples, so that none is without (Tarvainen and Valpola 2017, appendix).
    Which ones follows from the indices alone: the same in every worker and after a resume.
    """

    def __init__(self, whole: TensorImages | FolderImages, per_class: int, seed: int):
        self.whole, self.class_names = whole, whole.class_names
        whole.gives_index = True
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        shuffled = whole.labels[order]
        self.known = torch.cat([order[shuffled == label][:per_class] for label in shuffled.unique()])

    @property
    def labels(self) -> Tensor:
        return self.whole.labels

    def __len__(self) -> int:
        return len(self.whole)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        quarter = -(-len(indices) // 4)
        labelled = [int(self.known[i % len(self.known)]) for i in indices[:quarter]]
        images, labels, index = self.whole.__getitems__(labelled + indices[quarter:])
        return images, labels.where(torch.isin(index, self.known), -1)

    def corrupt_files(self) -> list[str]:
        return self.whole.corrupt_files()


def to_square(image: Image.Image, size: int) -> Tensor:
    """RGB image -> its centre square, shorter side scaled to ``size``: (3, size, size) uint8."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    box = (left, top, left + short, top + short)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ImageData:
    """One data set: its two halves, the side of its views, and what augmentation may do to it without changing the class."""

    name: str
    train: TensorImages | FolderImages | FewLabels
    test: TensorImages | FolderImages
    image_size: int
    mirror: bool = True
    colour: bool = True
    hue: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def summary(self) -> str:
        known = f" ({len(self.train.known)} labelled)" if isinstance(self.train, FewLabels) else ""
        counts = f"{len(self.train)} training{known} and {len(self.test)} test images"
        return f"{counts} of {self.image_size} x {self.image_size}, {len(self.class_names)} classes"

    @property
    def labelled(self) -> bool:
        """Whether kNN and linear probe mean anything: two classes at least to learn from, and something to test on."""
        return len(self.train.labels.unique()) > 1 and len(self.test) > 0


def shipped_photos() -> dict[str, np.ndarray]:
    """The pictures (H, W, 3) uint8 that lie in the installed scikit-image, by name; what it would download is left out."""
    spec = find_spec("skimage")
    if spec is None:
        raise UsageError("--data photos needs scikit-image: pip install fastssl[train]")
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


def _files_by_class(root: Path) -> dict[str, list[Path]]:
    """Image files of each subfolder, at any depth, in sorted order; a flat folder is one class."""
    classes = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if found:
            classes[folder.name] = found
    flat = sorted(file for file in root.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if flat:
        classes.setdefault(root.name, []).extend(flat)
    return classes


def folder(root: Path, size: int = 64) -> ImageData:
    """Image files below ``root``: class subfolders, or flat, or ``train`` and ``test``/``val`` folders of either."""
    if not root.is_dir():
        raise UsageError(f"--data folder:{root}: there is no such folder")
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test_root is not None:
        train_files, test_files = _files_by_class(root / "train"), _files_by_class(test_root)
    else:
        files = _files_by_class(root)
        part = FOLDER_TEST_SHARE
        train_files = {name: [f for i, f in enumerate(found) if i % part != part - 1] for name, found in files.items()}
        test_files = {name: found[part - 1 :: part] for name, found in files.items()}
    if not any(train_files.values()):
        raise UsageError(f"--data folder:{root}: no images there ({' '.join(sorted(IMAGE_SUFFIXES))})")
    names = tuple(sorted({**train_files, **test_files}))
    decoded = round(size * FOLDER_MARGIN)

    def half(files: dict[str, list[Path]]) -> FolderImages:
        pairs = [(path, names.index(name)) for name in names for path in files.get(name, [])]
        return FolderImages([path for path, _ in pairs], [label for _, label in pairs], names, decoded)

    return ImageData(f"folder:{root}", half(train_files), half(test_files), size)


def load_data(spec: str, size: int | None = None) -> ImageData:
    """The data set that ``--data`` names; ``size`` is the side of its views in pixels."""
    if spec.startswith("folder:"):
        return folder(Path(spec.removeprefix("folder:")).expanduser(), size or 64)
    known = {"photos": photos, "digits": digits}
    if spec not in known:
        raise UsageError(f"--data: unknown data set '{spec}'; known: photos, digits, folder:PATH")
    return known[spec](size or 32)


def batches(
    dataset: Dataset, batch_size: int, *, sampler: Sampler | None = None, workers: int = 0, drop_last: bool = False
) -> DataLoader:
    """Loader of what ``dataset.__getitems__`` collates, such as (images, labels), pinned where there is a GPU."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def limited(dataset: Dataset, most: int) -> Dataset:
    """``dataset``, or ``most`` of its images, evenly spaced."""
    count = len(dataset)
    return dataset if count <= most else Subset(dataset, torch.linspace(0, count - 1, most, dtype=torch.float64).long().tolist())


def _as_is(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch
