# ruff: noqa: E402
"""Pictures as they are: depths, bands, modes and orientations, what does not fit, what the first look says."""

import struct
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch

needs = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard", "tifffile")
if any(find_spec(name) is None for name in needs):
    pytest.skip("fastssl[train] is not installed", allow_module_level=True)

import tifffile
from PIL import Image, ImageOps

from fastssl.train import UsageError
from fastssl.train.data import load_data
from fastssl.train.read import Misfit, read_picture

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 6
RAMP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)  # no two pixels alike, so that a turned or mirrored picture is seen
EPS = 2.0**-23  # of float32, of values up to 1: one subtraction and one division round


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png16(path, pixels: np.ndarray) -> None:
    """(H, W, C) uint16 as a PNG of 16 bits: grey and alpha, RGB, RGBA, which Pillow cannot write."""
    colour = {2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def write_pgm(path, pixels: np.ndarray) -> None:
    path.write_bytes(b"P5\n%d %d\n65535\n" % pixels.shape[::-1] + pixels.astype(">u2").tobytes())


def pillow(path, pixels: np.ndarray, **how) -> None:
    Image.fromarray(pixels).save(path, **how)


def white_is_zero(path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path, 65535 - pixels, photometric="miniswhite")


def lzw(path, pixels: np.ndarray) -> None:
    pillow(path, pixels, compression="tiff_lzw")


# name: how to write it, pixels, --pixel-range, the range that the rule states, kind
DEPTHS = {
    "grey.png": (pillow, (RAMP * 1800).astype(np.uint16), None, (0, 65535), "grey uint16"),
    "grey.tif": (pillow, (RAMP * 1800).astype(np.uint16), None, (0, 65535), "grey uint16"),
    "big_endian.tif": (pillow, (RAMP * 1800).astype(">u2"), None, (0, 65535), "grey uint16"),
    "big_endian.npy": (np.save, (RAMP * 1800).astype(">u2"), None, (0, 65535), "grey uint16"),
    "little_endian.npy": (np.save, (RAMP * 1800).astype("<u2"), None, (0, 65535), "grey uint16"),
    "big_endian_int.npy": (np.save, (RAMP * 100 - 1024).astype(">i4"), (-1024, 3000), (-1024, 3000), "grey int32"),
    "big_endian_share.npy": (np.save, (RAMP / 36).astype(">f4"), None, (0, 1), "grey float32"),
    "big_endian_double.npy": (np.save, RAMP.astype(">f8") * 0.3 - 2.0, (-2, 9), (-2, 9), "grey float64"),
    "big_endian_deflate.tif": (
        lambda path, a: tifffile.imwrite(path, a, byteorder=">", compression="zlib", predictor=False),
        (RAMP * 1800).astype(np.uint16),
        None,
        (0, 65535),
        "grey uint16",
    ),
    "lzw.tif": (
        lambda path, a: pillow(path, a, compression="tiff_lzw"),
        (RAMP * 1800).astype(np.uint16),
        None,
        (0, 65535),
        "grey uint16",
    ),
    "white_is_zero.tif": (white_is_zero, (RAMP * 1800).astype(np.uint16), None, (0, 65535), "grey uint16"),
    "grey.pgm": (write_pgm, (RAMP * 1800).astype(np.uint16), None, (0, 65535), "grey uint16"),
    "grey.jp2": (pillow, (RAMP * 1800).astype(np.uint16), None, (0, 65535), "grey uint16"),
    "twelve.png": (pillow, (RAMP * 117).astype(np.uint16), (0, 4095), (0, 4095), "grey uint16"),
    "int32.tif": (pillow, (RAMP * 70_001 - 40_000).astype(np.int32), (-40_000, 3e6), (-40_000, 3e6), "grey int32"),
    "uint32.tif": (tifffile.imwrite, (RAMP * 117_000_001).astype(np.uint32), (0, 2**32), (0, 2**32), "grey uint32"),
    "ct.tif": (tifffile.imwrite, (RAMP * 100 - 1024).astype(np.int16), (-1024, 3000), (-1024, 3000), "grey int16"),
    "share.tif": (pillow, (RAMP / 36).astype(np.float32), None, (0, 1), "grey float32"),
    "half.npy": (np.save, (RAMP / 36).astype(np.float16), None, (0, 1), "grey float16"),
    "double.tif": (tifffile.imwrite, RAMP * 0.3 - 2.0, (-2, 9), (-2, 9), "grey float64"),
    "int64.npy": (np.save, RAMP + 10**9, (1e9, 1e9 + 36), (1e9, 1e9 + 36), "grey int64"),
    "bool.npy": (np.save, RAMP % 5 < 2, None, (0, 1), "grey bool"),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_a_depth_is_scaled_by_its_rule(name, tmp_path):
    """Decoded at its own size: nothing is resampled, so each value is (pixel - low) / (high - low)."""
    write, pixels, given, (low, high), kind = DEPTHS[name]
    write(tmp_path / name, pixels)
    picture = read_picture(tmp_path / name, SIDE, 3, given)
    expected = torch.from_numpy((pixels.astype(np.float64) - low) / (high - low))
    square = picture.square.double() / (255 if picture.square.dtype == torch.uint8 else 1)
    assert square.shape == (3, SIDE, SIDE) and picture.kind == kind and picture.size == (SIDE, SIDE)
    assert (square - expected).abs().max() <= 2 * EPS and not picture.clipped
    grey = read_picture(tmp_path / name, SIDE, 1, given).square
    assert grey.shape == (1, SIDE, SIDE) and torch.equal(grey, picture.square[:1])


def six_bands(dtype=np.uint16) -> np.ndarray:
    return (RAMP[..., None] * 30 + np.arange(6) * 3000).astype(dtype)


def moved(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def wider(pixels: np.ndarray) -> np.ndarray:
    """Two columns more on each side, which the centre square leaves out, so that no axis but the bands' has 6 entries."""
    return np.pad(pixels, ((0, 0), (2, 2), (0, 0)), mode="reflect")


BANDS = {
    "contiguous.tif": lambda path: tifffile.imwrite(path, six_bands(), photometric="minisblack", planarconfig="contig"),
    "separate.tif": lambda path: tifffile.imwrite(path, moved(six_bands()), photometric="minisblack", planarconfig="separate"),
    "pages.tif": lambda path: tifffile.imwrite(path, moved(wider(six_bands())), photometric="minisblack"),
    "rows_as_pages.tif": lambda path: tifffile.imwrite(path, wider(six_bands()), photometric="minisblack"),
    "deflate.tif": lambda path: tifffile.imwrite(
        path, six_bands(), photometric="minisblack", planarconfig="contig", compression="zlib"
    ),
    "last.npy": lambda path: np.save(path, wider(six_bands())),
    "first.npy": lambda path: np.save(path, moved(wider(six_bands()))),
    "cube.npy": lambda path: np.save(path, six_bands()),  # (6, 6, 6): the last axis has the bands
}


@pytest.mark.parametrize("name", BANDS)
def test_six_bands_of_any_order(name, tmp_path):
    BANDS[name](tmp_path / name)
    picture = read_picture(tmp_path / name, SIDE, 6, (0, 20_000))
    expected = torch.from_numpy(moved(six_bands()).astype(np.float64) / 20_000)
    assert picture.square.shape == (6, SIDE, SIDE) and (picture.square.double() - expected).abs().max() <= 2 * EPS
    assert picture.kind == "6-band uint16" and picture.values == (0, 35 * 30 + 5 * 3000)
    if name != "cube.npy":
        with pytest.raises(Misfit, match="6 bands, and --channels 3 takes files of 1 or 3; training with --channels 6 takes all"):
            read_picture(tmp_path / name, SIDE)


def test_bands_of_8_bits_stay_8_bits(tmp_path):
    pixels = (RAMP[..., None] + 40 * np.arange(5)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    picture = read_picture(tmp_path / "a.tif", SIDE, 5, (0, 4095))
    assert picture.square.dtype == torch.uint8 and np.array_equal(picture.square.numpy(), moved(pixels)) and picture.values is None


def test_colour_of_16_bits(tmp_path):
    """RGB and alpha of PNG and TIFF keep their 16 bits; alpha is left out, or the fourth channel; grey is the luma."""
    pixels = np.stack([RAMP * 1700, RAMP[::-1] * 900, RAMP.T * 400 + 7, RAMP * 3], 2).astype(np.uint16)
    expected = torch.from_numpy(moved(pixels) / 65535.0)
    luma = (torch.tensor([0.299, 0.587, 0.114]).double().view(3, 1, 1) * expected[:3]).sum(0)
    for bands in (3, 4):
        write_png16(tmp_path / "a.png", pixels[..., :bands])
        tifffile.imwrite(tmp_path / "a.tif", pixels[..., :bands], photometric="rgb")
        for name in ("a.png", "a.tif"):
            picture = read_picture(tmp_path / name, SIDE)
            assert (picture.square.double() - expected[:3]).abs().max() <= 2 * EPS
            assert picture.kind == ("RGB uint16" if bands == 3 else "RGBA uint16")
            assert (read_picture(tmp_path / name, SIDE, 1).square[0].double() - luma).abs().max() <= 4 * EPS
    assert (read_picture(tmp_path / "a.png", SIDE, 4).square.double() - expected).abs().max() <= 2 * EPS
    assert (read_picture(tmp_path / "a.tif", SIDE, 4).square.double() - expected).abs().max() <= 2 * EPS


def test_a_picture_is_known_by_its_content_not_its_name(tmp_path):
    colour = np.stack([RAMP * 1000 + 3, RAMP * 500, RAMP], 2).astype(np.uint16)
    write_png16(tmp_path / "a.png", colour)
    tifffile.imwrite(tmp_path / "b.tif", colour, photometric="rgb")
    (tmp_path / "a.png").rename(tmp_path / "png.tif")
    (tmp_path / "b.tif").rename(tmp_path / "tiff.jpg")
    for name in ("png.tif", "tiff.jpg"):
        assert read_picture(tmp_path / name, SIDE).values == (0, 35003)


def test_more_pixels_than_pillow_opens_are_said(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(
        UsageError, match=r"0.png: 900 pixels, of the 800 that are read at most; cut it into tiles, or scale it down"
    ):
        load_data(f"folder:{tmp_path}")
    Image.new("RGB", (25, 25)).save(tmp_path / "0.png")  # Pillow warns of these
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "0.png", SIDE).size == (25, 25)


def modes() -> dict[str, Image.Image]:
    """One image of each mode of 8 bits; the transparent pixels of each have colours too."""
    rng = np.random.default_rng(3)
    rgba = Image.fromarray(rng.integers(0, 256, (9, 9, 4)).astype(np.uint8))
    palette = rgba.convert("RGB").quantize(40)
    clear = palette.copy()
    clear.info["transparency"] = bytes(range(0, 200, 5))
    grey = rgba.convert("L")
    two = Image.merge("LA", (grey, rgba.getchannel("A")))
    return {"RGBA": rgba, "P": palette, "P, clear": clear, "L": grey, "LA": two, "1": grey.convert("1"), "RGB": rgba.convert("RGB")}


@pytest.mark.parametrize("name", [*modes(), "CMYK"])
def test_modes_of_8_bits_become_colours(name, tmp_path, recwarn):
    """As Pillow converts them: a palette its colours, 1 bit 0 and 255, alpha left out with the colours under it as stored."""
    image = modes().get(name) or modes()["RGB"].convert("CMYK")
    path = tmp_path / ("a.tif" if name == "CMYK" else "a.png")
    image.save(path)
    colour = np.array(image.convert("RGBA").convert("RGB") if name == "P, clear" else image.convert("RGB"))
    picture = read_picture(path, 9)
    assert picture.square.dtype == torch.uint8 and np.array_equal(picture.square.permute(1, 2, 0).numpy(), colour)
    grey = read_picture(path, 9, 1).square
    assert grey.shape == (1, 9, 9) and np.array_equal(grey[0].numpy(), np.array(Image.fromarray(colour).convert("L")))
    if name in ("RGBA", "CMYK", "P, clear"):
        bands = np.array(image.convert("RGBA") if name == "P, clear" else image)
        assert np.array_equal(read_picture(path, 9, 4).square.permute(1, 2, 0).numpy(), bands)
    else:
        with pytest.raises(Misfit, match=r"bands, and --channels 4 takes files of 4"):
            read_picture(path, 9, 4)
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation, tmp_path):
    stored = Image.fromarray((RAMP * 7).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    for suffix in ("png", "tif"):
        stored.save(tmp_path / f"a.{suffix}", exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert orientation == 1 or not np.array_equal(upright, np.array(stored))
    tag = [(274, "H", 1, orientation, True)]
    deep = (np.array(stored).astype(np.uint16) * 257)[..., None] * np.array([1, 0, 1], np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=tag)
    pillow(tmp_path / "deep.png", deep[..., 0], exif=exif)
    for name in ("a.png", "a.tif", "deep.tif", "deep.png"):
        square = read_picture(tmp_path / name, SIDE).square
        square = square[0] if square.dtype == torch.uint8 else (square[0] * 255).round()
        assert np.array_equal(square.numpy(), upright), name
    Image.new("RGB", (40, 24)).save(tmp_path / "wide.jpg", exif=exif)
    Image.new("RGB", (40, 24)).save(tmp_path / "wide.tif", exif=exif)
    size = (24, 40) if orientation >= 5 else (40, 24)
    assert read_picture(tmp_path / "wide.jpg", SIDE).size == read_picture(tmp_path / "wide.tif", SIDE).size == size


@pytest.mark.parametrize("exif", [b"Exif\0\0nothing of the kind", b"Exif\0\0II*\0\x08\0\0\0\x03\0\x12\x01", b"Exif\0\0"])
def test_damaged_metadata_turn_nothing(exif, tmp_path):
    stored = Image.fromarray((RAMP * 7).astype(np.uint8))
    for name in ("a.jpg", "b.png"):
        stored.save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            square = read_picture(tmp_path / name, SIDE).square[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.array_equal(square.numpy(), np.array(Image.open(tmp_path / name)))


MISFITS = {
    "int32 without a range": ("a.tif", lambda path: pillow(path, (RAMP - 5).astype(np.int32)), "int32 pixels, which have no range"),
    "int8": ("a.npy", lambda path: np.save(path, RAMP.astype(np.int8)), "int8 pixels, which have no range"),
    "float to 255": ("a.tif", lambda path: pillow(path, (RAMP * 7.0).astype(np.float32)), r"float32 pixels that leave \[0, 1\]"),
    "float below 0": ("a.npy", lambda path: np.save(path, RAMP / 36 - 0.25), r"float64 pixels that leave \[0, 1\]"),
    "grey and alpha of 16 bits": (
        "a.png",
        lambda path: write_png16(path, np.ones((6, 6, 2), np.uint16)),
        "grey with alpha in 16 bits",
    ),
    "four axes": ("a.npy", lambda path: np.save(path, np.zeros((2, 6, 6, 3), np.uint8)), r"pixels of shape \(2, 6, 6, 3\)"),
    "a stack of colour pages": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.zeros((2, 20, 20, 3), np.uint8), photometric="rgb"),
        r"a TIFF file of 2 pages, each of shape \(20, 20, 3\); expected one page, or pages of one band",
    ),
    "complex": ("a.npy", lambda path: np.save(path, RAMP * 1j), "expected real numbers"),
    "objects": ("a.npy", lambda path: np.save(path, np.array([{"a": 1}, 2])), "an array of Python objects, which is not read"),
    "text": ("a.npy", lambda path: np.save(path, np.array([["a"] * 8] * 8)), "expected real numbers"),
    "a table": ("a.npy", lambda path: np.save(path, np.zeros(512)), r"pixels of shape \(512,\)"),
    "empty": ("a.npy", lambda path: np.save(path, np.zeros((0, 4), np.uint8)), "no empty axis"),
    "RGB and infrared": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.zeros((8, 8, 4), np.uint8), photometric="rgb", extrasamples=["unspecified"]),
        "4 bands, and --channels 3",
    ),
    "LAB": ("a.tif", lambda path: Image.new("LAB", (8, 8)).save(path), "LAB"),
    "LZW of 16 bits and colour": (
        "a.tif",
        lambda path: [tifffile.imwrite(path, np.ones((8, 8, 3), np.uint16), photometric="rgb"), compressed(path)],
        "LZW.*imagecodecs",
    ),
}


def test_what_is_no_array_is_damaged(tmp_path):
    for content in (b"", b"x" * 100, b"\x93NUMPY"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(UsageError, match=r"none of 1 files looked at can be read: a.npy: damaged, or no image"):
            load_data(f"folder:{tmp_path}", 16)


def compressed(path) -> None:
    """Says in a TIFF file's head that its pixels are LZW."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(5)


@pytest.mark.parametrize("case", MISFITS)
def test_what_no_rule_fits_is_refused_by_name(case, tmp_path):
    name, write, reason = MISFITS[case]
    if "imagecodecs" in reason and find_spec("imagecodecs") is not None:
        pytest.skip("imagecodecs is installed")
    write(tmp_path / name)
    with pytest.raises(Misfit, match=reason):
        read_picture(tmp_path / name, SIDE)
    with pytest.raises(UsageError, match=rf"^--data folder:.*: 1 of 1 files looked at cannot be used: {name}: .*{reason}"):
        load_data(f"folder:{tmp_path}", 16)


def test_deep_pnm_files_keep_their_numbers(tmp_path):
    """Without a range 0 to the file's maximum is 0 to 1; with one, the numbers in the file count."""
    pixels = np.stack([np.full((20, 20), value, np.uint16) for value in (2048, 1024, 0)], 2)
    for most in (4095, 65535):
        for colour in (True, False):
            shown = pixels if colour else pixels[..., :1]
            head = b"# by hand\n20 20\n%d\n" % most
            binary = (b"P6\n" if colour else b"P5\n") + head + shown.astype(">u2").tobytes()
            text = (b"P3\n" if colour else b"P2\n") + head + " ".join(map(str, shown.flatten().tolist())).encode()
            for data in (binary, text):
                path = tmp_path / "picture.pnm"
                path.write_bytes(data)
                for limits, top in ((None, most), ((0, 4095), 4095), ((0, 2048), 2048)):
                    found = read_picture(path, 8, 3, limits)
                    want = torch.tensor([2048, 1024 if colour else 2048, 0 if colour else 2048]) / top
                    torch.testing.assert_close(found.square[:, 4, 4], want, rtol=0, atol=2e-5)
                    assert not found.clipped and found.kind == ("RGB uint16" if colour else "grey uint16")
    path.write_bytes(binary[:-3])
    with pytest.raises(ValueError, match="buffer"):
        read_picture(path, 8)
    path.write_bytes(b"P5 20 20 300\n" + np.full((20, 20), 60000, ">u2").tobytes())  # above its own maximum: white, not wrapped
    assert (read_picture(path, 8).square == 1).all()


def test_white_is_0_in_the_given_range(tmp_path):
    path = tmp_path / "inverted.tif"
    tifffile.imwrite(path, np.full((20, 20), 1000, np.uint16), photometric="miniswhite")
    for limits, want in ((None, 1 - 1000 / 65535), ((0, 4095), 1 - 1000 / 4095), ((500, 1500), 0.5)):
        found = read_picture(path, 8, 1, limits)
        torch.testing.assert_close(found.square[0, 4, 4].item(), want, rtol=0, atol=1e-5)
        assert not found.clipped and found.kind == "grey uint16"
    assert read_picture(path, 8, 1, (0, 400)).clipped


@pytest.mark.parametrize("limits", [None, (-0.5, 1.5), (0.25, 1)])
def test_white_is_0_among_numbers_of_any_kind(limits, tmp_path):
    path, (low, high) = tmp_path / "inverted.tif", limits or (0, 1)
    for dtype in (np.float32, np.float64, np.int16, np.int32):
        value = 0.75 if limits is None or dtype in (np.float32, np.float64) else 1
        tifffile.imwrite(path, np.full((20, 20), value, dtype), photometric="miniswhite")
        if limits is None and np.dtype(dtype).kind == "i":
            with pytest.raises(Misfit, match="no range of their own"):
                read_picture(path, 8, 1)
        else:
            found = read_picture(path, 8, 1, limits)
            torch.testing.assert_close(found.square[0, 4, 4].item(), (high - value) / (high - low), rtol=0, atol=1e-6)
            assert not found.clipped and found.values == (value, value)  # as the file has them
    bands = np.stack([np.full((20, 20), 10), np.full((20, 20), 200)], 2).astype(np.uint8)
    tifffile.imwrite(path, bands, photometric="miniswhite", extrasamples=["unassalpha"])
    assert read_picture(path, 8, 2).square[:, 4, 4].tolist() == [245, 200]  # alpha is no colour


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "RGB", "1"])
def test_tiff_files_of_8_bits_are_turned(mode, tmp_path):
    """Pillow 13 scrambles some of them where it is given a path."""
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (0, 0, 20, 20))
    image = image.convert(mode) if mode in "LP1" else image.convert("RGB").convert(mode)
    image.save(tmp_path / "turned.tif", tiffinfo={274: 6})  # the left becomes the top
    square = read_picture(tmp_path / "turned.tif", 16, 3).square.float()
    assert square[:, :7].min() > 250 and square[:, 9:].max() < 5


def test_deep_tiff_pixels_that_are_no_colours_are_refused(tmp_path):
    path = tmp_path / "palette.tif"
    tifffile.imwrite(path, np.full((20, 20), 7, np.uint16), photometric="palette", colormap=np.zeros((3, 65536), np.uint16))
    with pytest.raises(Misfit, match="uint16 pixels are PALETTE"):
        read_picture(path, 8)
    tifffile.imwrite(path, np.full((20, 20, 3), 7, np.uint16), photometric="cielab")
    with pytest.raises(Misfit, match="uint16 pixels are CIELAB"):
        read_picture(path, 8)
