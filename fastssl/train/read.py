"""One image file -> the square that an encoder gets: (C, S, S), uint8 of 8-bit files, float32 in [0, 1] of deeper ones.

    value = (pixel - low) / (high - low)

[low, high] is ``--pixel-range``; without it 0 to 65535 for uint16 and 0 to 1 for floats. A file that no rule fits (other integers
without a range, floats outside [0, 1], more bands than channels) is refused with ``Misfit``, whose text is the reason.
"""

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastssl._ending import out_of_memory

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of damaged files is said of the file by its reader here

KINDS = {"1": "1-bit", "L": "grey uint8", "P": "palette uint8", "LA": "grey and alpha uint8", "PA": "palette and alpha uint8"}
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of one band with more than 8 bits
TIFF = (".tif", ".tiff")
MOST_COMPRESSED = 2**16  # bytes of pixels in one of a file, at most; zstd makes 2^15 of a constant
TIFF_ALPHA = (1, 2)  # ExtraSamples: associated and unassociated alpha
TIFF_NO_COLOURS = ("PALETTE", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")  # photometric interpretations, as tifffile calls them
ORIENTATION = 274  # the tag of EXIF and TIFF
PNG_BYTES, PNG_COLOURS = b"\x89PNG\r\n\x1a\n", {2: "rgb", 4: None, 6: "rgba"}  # colour types, as kornia_rs names them
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's weights of "L"


class Misfit(Exception):
    """A picture that can be decoded and that no rule fits. ``values``: its lowest and highest, where a pixel range would fit it."""

    def __init__(self, reason: str, values: tuple[float, float] | None = None):
        super().__init__(reason)
        self.values = values


@dataclass(frozen=True)
class Picture:
    """What a file gave: ``square`` (C, S, S), and what it was before."""

    square: Tensor
    kind: str  # such as "RGB uint8" or "6-band uint16"
    size: tuple[int, int]  # width and height of the whole picture, upright
    values: tuple[float, float] | None = None  # lowest and highest pixel, of files with more than 8 bits
    clipped: bool = False  # some pixels lay outside the range, or were NaN


@dataclass(frozen=True)
class Bands:
    """Pixels (H, W, C) of a file with more than 8 bits or with other bands than grey and RGB, upright."""

    array: np.ndarray
    alpha: bool = False  # the last band is no colour
    low_is_white: bool = False


def read_picture(path: Path, size: int, channels: int = 3, pixel_range: tuple[float, float] | None = None) -> Picture:
    """The centre square of the picture in ``path``, its shorter side scaled to ``size``.

    Raises:
        Misfit: no rule fits the picture.
        MemoryError: memory was refused, whatever the decoder made of it.
        Exception: the file is damaged or no picture; Pillow's decoders raise a dozen types.
    """
    try:
        return _read(path, size, channels, pixel_range)
    except UnidentifiedImageError:  # its text holds the name of the file
        raise
    except Exception as error:
        if out_of_memory(error):
            raise MemoryError(f"out of memory while reading {path}") from error
        raise


def _read(path: Path, size: int, channels: int, pixel_range: tuple[float, float] | None) -> Picture:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _picture_of_bands(Bands(bands_last(_array(path), "", channels)), size, channels, pixel_range)
    if suffix in TIFF and (found := _deep_tiff(path, channels)) is not None:
        return _picture_of_bands(found, size, channels, pixel_range)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of damaged metadata: what is wrong with the pixels raises
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of pictures that are large and can be read
        # Of a path Pillow 13 maps TIFF files that are to be turned into memory with width and height exchanged.
        with open(path, "rb") as file, Image.open(file) as image:
            found = _deep_png(path, image) if image.format == "PNG" else None
            if image.format == "PPM":
                found = _deep_pnm(path, pixel_range)
            if image.format == "TIFF" and suffix not in TIFF:  # by another name
                found = _deep_tiff(path, channels)
            if image.mode in DEEP_MODES and found is None:
                found = _deep_band(image)
            if found is not None:
                return _picture_of_bands(found, size, channels, pixel_range)
            return _picture_of_image(image, size, channels)


# --- 8 bits, by Pillow --------------------------------------------------------------------------------------------------------


def _picture_of_image(image: Image.Image, size: int, channels: int) -> Picture:
    kind = KINDS.get(image.mode, f"{image.mode} uint8")
    if image.mode == "LAB":
        raise Misfit("LAB colours, which Pillow does not turn into RGB")
    whole = image.size
    if image.format != "TIFF" and _orientation(image) >= 5:  # Pillow's size of a TIFF file is upright
        whole = whole[::-1]
    if channels in (1, 3):
        mode = "L" if channels == 1 else "RGB"
        image.draft(mode, (2 * size, 2 * size))
        image = upright(image)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return Picture(to_square(image.convert(mode), size), kind, whole)
    image = upright(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    bands = len(image.getbands())
    if bands != channels:
        raise _wrong_bands(bands, channels)
    return Picture(to_square(image, size), kind, whole)


def _orientation(image: Image.Image) -> int:
    """The orientation of the EXIF data, 1 to 8; 1, which turns nothing, where they are damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # struct.error, SyntaxError, ... of what a camera or an editor wrote
        if out_of_memory(error):
            raise
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # as in _orientation
        if out_of_memory(error):
            raise
        return image


def to_square(image: Image.Image, size: int) -> Tensor:
    """Image of C bands -> its centre square, shorter side scaled to ``size``: (C, size, size), uint8, or float32 of mode F."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    box = (left, top, left + short, top + short)
    square = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
    return torch.from_numpy(square.reshape(size, size, -1)).permute(2, 0, 1).contiguous()


# --- more than 8 bits, or other bands: arrays -----------------------------------------------------------------------------------


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "Python objects" not in str(error):  # else no array at all
            raise
        raise Misfit("an array of Python objects, which is not read; expected real numbers") from None


def _deep_band(image: Image.Image) -> Bands:
    """The bands of an image with one of Pillow's deep modes."""
    array = np.asarray(upright(image))
    if image.mode == "I" and image.format == "PNG":  # Pillow gives 16 bits as int32
        array = array.astype(np.uint16)
    return Bands(array[..., None])


def _deep_png(path: Path, image: Image.Image) -> Bands | None:
    """The bands of a colour PNG with 16 bits, of which Pillow would keep 8; None for other files."""
    with open(path, "rb") as file:
        head = file.read(26)
    if head[:8] != PNG_BYTES or head[24] != 16 or head[25] not in PNG_COLOURS:
        return None
    mode = PNG_COLOURS[head[25]]
    if mode is None:
        raise Misfit("a PNG file of grey with alpha in 16 bits, which is not read here; save it as TIFF, or without alpha")
    try:
        from kornia_rs.io import read_image_png_u16
    except ImportError:  # a kornia_rs of before
        raise Misfit("a PNG file of colours in 16 bits, which a later kornia_rs reads: pip install -U kornia_rs") from None
    return Bands(_turned(read_image_png_u16(str(path), mode), _orientation(image)), alpha=mode == "rgba")


def _deep_pnm(path: Path, pixel_range: tuple[float, float] | None) -> Bands | None:
    """The bands of a PGM or PPM file with more than 8 bits; None for other files.

    Without a pixel range, 0 to the file's own maximum become 0 to 65535. Pillow would do so even with a range, and keep 8 bits of
    colours.
    """
    with open(path, "rb") as file:
        begins = file.read(4096)
    head = re.match(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s", begins)
    if head is None or int(head[4]) < 256:
        return None
    width, height, most = (int(number) for number in head.groups()[1:])
    bands = 3 if head[1] in b"36" else 1
    count = height * width * bands
    data = path.read_bytes()
    if head[1] in b"23":
        array = np.array([int(word) for word in re.sub(rb"#[^\n]*", b"", data[head.end() :]).split()[:count]], np.uint16)
    else:
        array = np.frombuffer(data, ">u2", count, head.end()).astype(np.uint16)
    if pixel_range is None:
        array = np.minimum((array.astype(np.uint32) * 65535 + most // 2) // most, 65535).astype(np.uint16)
    return Bands(array.reshape(height, width, bands))


def _deep_tiff(path: Path, channels: int) -> Bands | None:
    """The bands of a TIFF file that Pillow would not read whole; None for other files."""
    import tifffile

    try:
        opened = tifffile.TiffFile(path)
    except tifffile.TiffFileError:  # Pillow looks what it is, and says so
        return None
    with opened as file:
        page: Any = file.pages[0]  # tifffile says "page or frame" of each; the first one is a page
        series = file.series[0]
        alpha = len(page.extrasamples) > 0 and int(page.extrasamples[0]) in TIFF_ALPHA
        colours = page.samplesperpixel - alpha
        low_is_white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        usual = colours in (1, 3) or (colours == 4 and page.photometric == tifffile.PHOTOMETRIC.SEPARATED)
        usual &= not (alpha and low_is_white)
        one_by_one = len(file.series) > 1 and len({(other.shape, other.dtype) for other in file.series}) == 1
        stacked = one_by_one and series.ndim == 2  # pages of one band
        if series.dtype in (np.uint8, bool) and series.ndim - ("S" in series.axes) == 2 and usual and not stacked:
            return None
        if (meant := getattr(page.photometric, "name", "")) in TIFF_NO_COLOURS:
            raise Misfit(f"a TIFF file whose {series.dtype.name} pixels are {meant}, no grey or RGB values")
        if len(file.pages) > 1 and series.ndim > 3:
            pages = f"{len(file.pages)} pages, each of shape {tuple(page.shape)}"
            raise Misfit(f"a TIFF file of {pages}; expected one page, or pages of one band: save each page as a file of its own")
        if len(file.series) * series.nbytes > MOST_COMPRESSED * path.stat().st_size:
            raise ValueError(f"{series.nbytes} bytes of pixels in a file of {path.stat().st_size}")
        try:
            array = np.stack([other.asarray() for other in file.series]) if stacked else series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            array = _compressed_band(path, series)
        tag = page.tags.get(ORIENTATION)
        axes = "C" * stacked + series.axes
        upright = _turned(bands_last(array, axes, channels), 1 if tag is None else int(tag.value))
        return Bands(upright, alpha, low_is_white)


def _compressed_band(path: Path, series: Any) -> np.ndarray:
    """The band (H, W) of a file that tifffile needs another package for, read by Pillow and not turned upright."""
    with Image.open(path) as image:
        if series.ndim == 2 and series.dtype in (np.uint16, np.int16, np.int32, np.float32) and image.mode in DEEP_MODES:
            turn = getattr(image, "tag_v2", {}).get(ORIENTATION)
            if turn in (None, 1):
                return np.asarray(image).astype(series.dtype)
    compression = series.keyframe.compression.name
    raise Misfit(f"a TIFF file with the compression {compression}, which needs a package: pip install imagecodecs")


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as it was stored -> upright, by the orientation 1 to 8 of EXIF and TIFF."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def bands_last(array: np.ndarray, axes: str, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W, C).

    Of three axes, the bands are the one that ``axes`` calls S or C; else the last or the first, whichever has ``channels`` entries,
    the last if both have; else the shorter one.
    """
    if array.dtype.names is not None or array.dtype.kind not in "buif" or 0 in array.shape:
        raise Misfit(f"pixels of {array.dtype} and shape {tuple(array.shape)}; expected real numbers, and no empty axis")
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise Misfit(f"pixels of shape {tuple(array.shape)}; expected (H, W), (H, W, C) or (C, H, W)")
    named = [i for i, name in enumerate(axes) if name in "SC"]
    if len(named) == 1:
        bands = named[0]
    elif channels in (array.shape[2], array.shape[0]):
        bands = 2 if array.shape[2] == channels else 0
    else:
        bands = 2 if array.shape[2] <= array.shape[0] else 0
    return np.moveaxis(array, bands, 2)


def _wrong_bands(bands: int, channels: int) -> Misfit:
    taken = "1 or 3" if channels in (1, 3) else str(channels)
    return Misfit(
        f"{bands} bands, and --channels {channels} takes files of {taken}; training with --channels {bands} takes all of them"
    )


def _chosen_bands(array: np.ndarray, alpha: bool, channels: int) -> np.ndarray:
    """(H, W, C) -> the bands to read: all of them, or without alpha."""
    bands = array.shape[2]
    if bands == channels:
        return array
    if alpha:
        array = array[..., :-1]
    if array.shape[2] == channels or (channels in (1, 3) and array.shape[2] in (1, 3)):
        return array
    raise _wrong_bands(bands, channels)


def _picture_of_bands(bands: Bands, size: int, channels: int, pixel_range: tuple[float, float] | None) -> Picture:
    """The picture of the centre square of ``bands``."""
    height, width, count = bands.array.shape
    name = {1: "grey", 3: "RGB"}.get(count, "RGBA" if bands.alpha and count == 4 else f"{count}-band")
    chosen = _chosen_bands(bands.array, bands.alpha, channels)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    chosen = chosen[top : top + side, left : left + side]
    if chosen.dtype == bool:
        chosen = chosen.astype(np.uint8) * 255
    dtype = chosen.dtype.newbyteorder("=")  # files of other machines
    planes = [np.ascontiguousarray(chosen[..., i], dtype) for i in range(chosen.shape[2])]
    values, clipped = None, False
    if chosen.dtype != np.uint8:
        values = _extremes(planes)
        low, high = _range_of(dtype, values, pixel_range)
        clipped = not (low <= values[0] and values[1] <= high) or not all(np.isfinite(plane).all() for plane in planes)
        planes = [_scaled(plane, low, high) for plane in planes]
    if bands.low_is_white:
        white = 255 if planes[0].dtype == np.uint8 else 1
        planes = [white - plane if i < count - bands.alpha else plane for i, plane in enumerate(planes)]
    square = torch.cat([to_square(Image.fromarray(plane), size) for plane in planes])
    if square.is_floating_point():
        square = square.clamp_(0.0, 1.0)  # cubic interpolation overshoots at edges
    return Picture(_as_channels(square, channels), f"{name} {bands.array.dtype.name}", (width, height), values, clipped)


def _extremes(planes: list[np.ndarray]) -> tuple[float, float]:
    """Lowest and highest finite value; (inf, -inf) where there is none."""
    finite = [plane[np.isfinite(plane)] for plane in planes] if planes[0].dtype.kind == "f" else planes
    filled = [part for part in finite if part.size]
    return float(min((part.min() for part in filled), default=np.inf)), float(max((part.max() for part in filled), default=-np.inf))


def _range_of(dtype: np.dtype, values: tuple[float, float], pixel_range: tuple[float, float] | None) -> tuple[float, float]:
    if pixel_range is not None:
        return pixel_range
    if dtype == np.uint16:
        return 0.0, 65535.0
    if dtype.kind == "f":
        if values[0] >= 0 and values[1] <= 1:
            return 0.0, 1.0
        raise Misfit(f"{dtype.name} pixels that leave [0, 1]", values)
    raise Misfit(f"{dtype.name} pixels, which have no range of their own", values)


def _scaled(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) -> float32, low to 0 and high to 1, clipped; NaN becomes 0."""
    exact = np.float32 if plane.dtype.itemsize <= 2 else np.float64
    share = np.subtract(plane, low, dtype=exact) / exact(high - low)
    return np.clip(np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0).astype(np.float32)


def _as_channels(square: Tensor, channels: int) -> Tensor:
    """(C, S, S) -> (channels, S, S): grey is repeated, RGB becomes grey."""
    if len(square) == channels:
        return square
    if len(square) == 1:
        return square.repeat(channels, 1, 1)
    return grey(square)


def grey(images: Tensor) -> Tensor:
    """RGB (..., 3, H, W) -> its luma (..., 1, H, W) in the same dtype."""
    red, green, blue = (weight * band for weight, band in zip(LUMA, images.float().unbind(-3), strict=True))
    luma = (red + green + blue).unsqueeze(-3)
    return luma if images.is_floating_point() else luma.round_().to(images.dtype)
