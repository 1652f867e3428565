"""Image files as a data set, and what a first look at some of them says: kinds, sizes, values, and what does not fit."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastssl.train import UsageError
from fastssl.train.layout import NO_DATA, shortened
from fastssl.train.read import Misfit, Picture, read_picture
from fastssl.train.samples import ImageSamples

LOOKED_AT = 64  # files, evenly spaced, that are read before the run, for its first line and its warnings
THIN = 0.01  # share of the pixel range; pictures whose values fill less of it are nearly of one shade
NEARLY_BLACK = 4096  # uint16 pictures that stay below it hold 12 bits at most, and would be darker than 1/16


def files_below(folder: Path, suffixes: set[str]) -> list[Path]:
    """Files of these suffixes at any depth of ``folder``, in order, without hidden entries and folders of the systems."""

    def passed_over(inside: Path) -> bool:
        return any(part.startswith(".") or part.lower() in NO_DATA for part in inside.parts)

    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not passed_over(path.relative_to(folder)))


class FolderImages(ImageSamples):
    """Image files, decoded when asked for (in DataLoader workers): the shorter side to ``size``, then the centre square.

    A batch of 8-bit files is uint8, with deeper ones among them float32 in [0, 1]. A file that cannot be read is left out of its
    batch and marked in ``corrupt`` (N,) bool; one with pixels outside the range is marked in ``clipped`` (N,) bool. Both lie in
    shared memory, so that the main process sees what its workers met.
    """

    def __init__(
        self,
        paths: list[Path],
        labels: list[int],
        class_names: tuple[str, ...],
        size: int,
        channels: int = 3,
        pixel_range: tuple[float, float] | None = None,
    ):
        self.paths, self.class_names, self.size = paths, class_names, size
        self.channels, self.pixel_range = channels, pixel_range
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.corrupt = torch.zeros(len(paths), dtype=torch.bool).share_memory_()
        self.clipped = torch.zeros(len(paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        decoded = [(image, index) for index in indices if (image := self._decode(index)) is not None]
        index = torch.tensor([index for _, index in decoded], dtype=torch.int64)
        images = [image for image, _ in decoded]
        if any(image.is_floating_point() for image in images):
            images = [image if image.is_floating_point() else image / 255.0 for image in images]
        empty = torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)
        return torch.stack(images) if images else empty, self.labels[index], *([index] if self.gives_index else [])

    def _decode(self, index: int) -> Tensor | None:
        """(C, size, size), or None for a file that cannot be read."""
        if self.corrupt[index]:
            return None
        try:
            return self.read(index).square
        except MemoryError:
            raise
        except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files
            self.corrupt[index] = True
            return None

    def read(self, index: int) -> Picture:
        picture = read_picture(self.paths[index], self.size, self.channels, self.pixel_range)
        if picture.clipped:
            self.clipped[index] = True
        return picture

    def corrupt_files(self) -> list[str]:
        return [str(self.paths[i]) for i in self.corrupt.nonzero().flatten().tolist()]

    def clipped_files(self) -> list[str]:
        return [str(self.paths[i]) for i in self.clipped.nonzero().flatten().tolist()]

    def reason(self, file: str) -> str:
        """Why one of ``corrupt_files`` was left out."""
        try:
            read_picture(Path(file), self.size, self.channels, self.pixel_range)
        except Exception as error:
            return why(error)
        return "it could not be read before"


def why(error: Exception) -> str:
    """An exception of ``read_picture`` for a person."""
    if isinstance(error, Misfit):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"\d+", str(error))
        most = f"of the {2 * (Image.MAX_IMAGE_PIXELS or 0)} that are read at most; cut it into tiles, or scale it down"
        return f"{found[0] if found else 'more'} pixels, {most}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    return "damaged, or no image"


class Look:
    """What ``LOOKED_AT`` files of the halves hold, evenly spaced over both."""

    def __init__(self, name: str, halves: list[FolderImages]):
        self.name, self.pictures, self.failures, self.flat = name, {}, {}, []
        self.channels, self.pixel_range = halves[0].channels, halves[0].pixel_range
        files = [(half, index) for half in halves for index in range(len(half))]
        self.total, count = len(files), min(len(files), LOOKED_AT)
        for at in torch.linspace(0, self.total - 1, count, dtype=torch.float64).long().tolist():
            half, index = files[at]
            try:
                picture = half.read(index)
            except MemoryError:
                raise
            except Exception as error:
                half.corrupt[index] = True
                self.failures[half.paths[index]] = error
                continue
            if _is_constant(picture.square):
                self.flat.append(half.paths[index].name)
            self.pictures[half.paths[index]] = replace(picture, square=picture.square[:, :0])  # 64 large ones fill the memory
        self.count = len(self.pictures) + len(self.failures)

    def refuse(self) -> None:
        """UsageError where a file does not fit the options, or none can be read."""
        misfits = {path: error for path, error in self.failures.items() if isinstance(error, Misfit)}
        if misfits:
            path, misfit = next(iter(misfits.items()))
            most = f"{len(misfits)} of {self.count} files looked at cannot be used"
            seen = span([each.values for each in misfits.values()])
            advice = f"; they lie from {seen[0]:g} to {seen[1]:g}: {option_of(*seen)}" if seen else ""
            raise UsageError(f"--data {self.name}: {most}: {path.name}: {misfit}{advice}")
        if not self.pictures:
            path, error = next(iter(self.failures.items()))
            raise UsageError(f"--data {self.name}: none of {self.count} files looked at can be read: {path.name}: {why(error)}")

    def notes(self) -> list[str]:
        """For the first line: how many files, sizes, kinds with their values."""
        sizes = sorted({picture.size for picture in self.pictures.values()}, key=lambda size: (size[0] * size[1], size))
        shown = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys((sizes[0], sizes[-1])))
        kinds = Counter(picture.kind for picture in self.pictures.values())
        parts = []
        for kind, count in kinds.most_common():
            seen = span([picture.values for picture in self.pictures.values() if picture.kind == kind])
            values = f" from {seen[0]:g} to {seen[1]:g}" if seen else ""
            parts.append(f"{kind}{values}" + (f" ({count})" if len(kinds) > 1 else ""))
        every = "1 file" if self.total == 1 else f"all {self.total} files"
        which = every if self.count == self.total else f"{self.count} of {self.total} files looked at"
        return [f"{which}: {shown} pixels, {', '.join(parts)}"]

    def warnings(self) -> list[str]:
        lines = []
        if self.failures:
            first = [(path.name, why(error)) for path, error in list(self.failures.items())[:3]]
            lines.append(unread_line(len(self.failures), self.count, "files looked at", first))
        dark = [path for path, picture in self.pictures.items() if picture.kind.endswith("uint16") and self._is_dark(picture)]
        if dark:
            deep = sum(picture.kind.endswith("uint16") for picture in self.pictures.values())
            highest = max(self.pictures[path].values[1] for path in dark)
            top = 2 ** max(8, int(highest).bit_length()) - 1
            lines.append(
                f"{len(dark)} of {deep} uint16 images looked at stay at {highest:g} or below, of 65535, and become nearly black; "
                f"--pixel-range 0,{top} would scale them ({shortened([path.name for path in dark], 3)})"
            )
        clipped = [path.name for path, picture in self.pictures.items() if picture.clipped]
        if clipped:
            lines.append(clipped_line(clipped, self.count, "images looked at", self.pixel_range))
        if self.flat:
            have = "has" if len(self.flat) == 1 else "have"
            lines.append(f"{len(self.flat)} of {self.count} images looked at {have} one colour only: {shortened(self.flat, 3)}")
        if self.pixel_range is not None and all(picture.values is None for picture in self.pictures.values()):
            lines.append("the pixel range changes nothing: all files looked at have 8 bits, 0 to 255")
        return lines + self._thin()

    def _thin(self) -> list[str]:
        """A warning of each kind of pictures whose values fill next to nothing of the pixel range."""
        low, high = self.pixel_range or (0.0, 0.0)
        lines = []
        for kind in sorted({picture.kind for picture in self.pictures.values()}):
            values = [picture.values for picture in self.pictures.values() if picture.kind == kind]
            seen = span(values)
            if seen and 0 < seen[1] - seen[0] < THIN * (high - low):
                fill = f"fill less than a hundredth of the pixel range {low:g} to {high:g} and become nearly one shade"
                lines.append(f"{kind} pixels from {seen[0]:g} to {seen[1]:g} {fill}; {option_of(*seen)} would spread them")
        return lines

    def _is_dark(self, picture: Picture) -> bool:
        return self.pixel_range is None and picture.values is not None and 0 < picture.values[1] < NEARLY_BLACK


def span(ranges: list[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Lowest and highest of all ranges that there are."""
    known = [values for values in ranges if values is not None and values[0] <= values[1]]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def option_of(low: float, high: float) -> str:
    """The option that takes these values, as it is typed."""
    return f"--pixel-range{'=' if low < 0 else ' '}{low:.9g},{high if high > low else low + 1:.9g}"


def unread_line(count: int, total: int, what: str, first: list[tuple[str, str]]) -> str:
    """How many files cannot be used, with the names and reasons of the ``first``."""
    named = shortened([f"{name} ({reason})" for name, reason in first]) + (", ..." if count > len(first) else "")
    return f"{count} of {total} {what} cannot be used and {'is' if count == 1 else 'are'} skipped: {named}"


def clipped_line(files: list[str], total: int, what: str, pixel_range: tuple[float, float] | None) -> str:
    low, high = pixel_range or (0.0, 1.0)
    beyond = f"outside {low:g} to {high:g}, or NaN, which became the nearest of the two, or {low:g}"
    return f"{len(files)} of {total} {what} {'has' if len(files) == 1 else 'have'} pixels {beyond}: {shortened(files, 3)}"


def _is_constant(square: Tensor) -> bool:
    """Whether each band has one value; of floats, up to the rounding of a resize."""
    square = square.float()
    return bool((square.amax((1, 2)) - square.amin((1, 2)) < 1e-6).all())
