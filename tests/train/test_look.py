# ruff: noqa: E402
"""What the first look at a folder says, and what is said of files at the end of a run."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

needs = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard", "tifffile")
if any(find_spec(name) is None for name in needs):
    pytest.skip("fastssl[train] is not installed", allow_module_level=True)

import tifffile
from PIL import Image

from fastssl.train import UsageError
from fastssl.train.data import load_data, reading_warnings
from fastssl.train.folder import Look, why
from fastssl.train.read import Misfit, read_picture
from tests.train.test_read import RAMP, pillow, six_bands, write_png16

pytestmark = pytest.mark.usefixtures("one_thread")


def grey_folder(folder, values, count: int = 5, suffix: str = "png"):
    """``count`` pictures in each of the classes a and b; values: generator, label -> (12, 12)."""
    rng = np.random.default_rng(0)
    for label, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pillow(folder / name / f"{i}.{suffix}", values(rng, label))
    return f"folder:{folder}"


def test_a_refusal_names_the_range_to_pass(tmp_path):
    spec = grey_folder(tmp_path, lambda rng, label: np.array([[-1000, 50 + label]] * 4, np.int32), suffix="tif")
    with pytest.raises(UsageError, match=r"10 of 10 .* they lie from -1000 to 51: --pixel-range=-1000,51$"):
        load_data(spec, 16)
    assert load_data(spec, 16, pixel_range=(-1000, 51)).train.__getitems__([0])[0].max() <= 1


def test_twelve_bits_in_sixteen_are_said(tmp_path, capsys):
    """The uint16 folder becomes nearly black by its rule; the warning's own option ends that, and the warning."""
    spec = grey_folder(tmp_path, lambda rng, label: rng.integers(2000 * label, 2000 * label + 2000, (12, 12)).astype(np.uint16))
    dark = load_data(spec, 8)
    said = capsys.readouterr().err
    assert "10 of 10 uint16 images looked at stay at 39" in said and "--pixel-range 0,4095 would scale them" in said
    assert "grey uint16 from " in dark.summary() and dark.train.__getitems__([0])[0].max() < 1 / 16
    bright = load_data(spec, 8, pixel_range=(0, 4095))
    assert capsys.readouterr().err == ""
    assert bright.train.__getitems__(list(range(8)))[0].max() > 0.9


def test_a_batch_of_both_depths(tmp_path):
    spec = grey_folder(tmp_path, lambda rng, label: (RAMP * (1000 if label else 7)).astype(np.uint16 if label else np.uint8))
    train = load_data(spec, 16).train
    shallow, deep, both = (train.__getitems__(indices)[0] for indices in ([0, 1], [4, 5], [1, 4]))
    assert shallow.dtype == torch.uint8 and deep.dtype == both.dtype == torch.float32
    assert torch.equal(both, torch.stack([shallow[1].float() / 255, deep[0]]))


def test_clipped_pixels_are_counted_and_named(tmp_path, capsys):
    def values(rng, label):
        return np.full((12, 12), 900.0 + 200 * label, np.float32) + rng.random((12, 12), np.float32)

    data = load_data(grey_folder(tmp_path, values, suffix="tif"), 8, pixel_range=(800, 1000))
    said = capsys.readouterr().err
    assert "5 of 10 images looked at have pixels outside 800 to 1000" in said and "0.tif" in said
    assert reading_warnings(data)[0].startswith("5 of 10 files have pixels outside 800 to 1000")
    images, labels = data.train.__getitems__(list(range(8)))
    assert (images[labels == 1] == 1).all() and (images[labels == 0] < 0.51).all()
    holes = np.full((12, 12), 0.5, np.float32)
    holes[0, 3] = np.nan
    pillow(tmp_path / "a" / "0.tif", holes)
    picture = read_picture(tmp_path / "a" / "0.tif", 12)
    assert picture.clipped and picture.square[0, 0, 3] == 0 and picture.square.isfinite().all()


def test_what_was_found_after_the_look_is_said_at_the_end(tmp_path, monkeypatch, capsys):
    from fastssl.train import folder

    monkeypatch.setattr(folder, "LOOKED_AT", 2)  # the first training and the last test picture
    spec = grey_folder(tmp_path, lambda rng, label: rng.integers(0, 65536, (12, 12)).astype(np.uint16))
    tifffile.imwrite(tmp_path / "a" / "z.tif", six_bands(), photometric="minisblack", planarconfig="contig")
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    data = load_data(spec, 16)
    assert "2 of 11 files looked at: 12 x 12 pixels, grey uint16 from" in data.summary() and capsys.readouterr().err == ""
    images, labels = data.train.__getitems__(list(range(len(data.train))))
    assert len(images) == len(data.train) - 2 == len(labels)
    (line,) = reading_warnings(data)
    assert line.startswith("2 of 11 files cannot be used and are skipped: ")
    assert "1.png (damaged, or no image)" in line and "z.tif (6 bands, and --channels 3" in line


def test_one_colour_and_a_needless_range_are_said(tmp_path, capsys):
    spec = grey_folder(tmp_path, lambda rng, label: np.full((12, 12), 90 * label, np.uint8))
    load_data(spec, 8, pixel_range=(0, 4095))
    said = capsys.readouterr().err
    assert "warning: 10 of 10 images looked at have one colour only: 0.png, 1.png, 2.png, ..." in said
    assert "warning: the pixel range changes nothing: all files looked at have 8 bits" in said
    with pytest.raises(UsageError, match="--channels 6: --data digits has 3, or 1 as grey images"):
        load_data("digits", 16, 6)
    grey, colour = load_data("digits", 16, 1, (0, 5)).test.images, load_data("digits", 16).test.images
    assert "the pixel range changes nothing" in capsys.readouterr().err and torch.equal(grey, colour[:, :1])


def test_what_cannot_be_read_is_said_before_the_run(tmp_path, capsys, monkeypatch):
    spec = grey_folder(tmp_path, lambda rng, label: rng.integers(0, 256, (12, 12)).astype(np.uint8))
    for name in ("0", "2"):
        (tmp_path / "a" / f"{name}.png").write_bytes(b"")
    Image.new("L", (30, 30)).save(tmp_path / "b" / "3.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    data = load_data(spec, 8)
    reasons = "0.png (damaged, or no image), 2.png (damaged, or no image), 3.png (900 pixels, of the 800 that are read at most"
    assert f"warning: 3 of 10 files looked at cannot be used and are skipped: {reasons}" in capsys.readouterr().err
    assert "all 10 files: 12 x 12 pixels, grey uint8" in data.summary()


def test_a_pixel_range_that_the_values_do_not_fill(tmp_path, capsys):
    """Reflectance from 0 to 1 in a run on digital numbers from 0 to 10,000 would be black."""
    spec = grey_folder(tmp_path, lambda rng, label: (0.1 + 0.2 * rng.random((12, 12))).astype(np.float32), suffix="tif")
    load_data(spec, 8, pixel_range=(0, 10_000))
    fill = "fill less than a hundredth of the pixel range 0 to 10000 and become nearly one shade; --pixel-range 0.1"
    said = capsys.readouterr().err
    assert "warning: grey float32 pixels from 0.1" in said and fill in said and said.count("\n") == 1
    for limits in ((0, 1), (0.1, 10), None):
        load_data(spec, 8, pixel_range=limits)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_that_were_written_one_by_one_are_bands(dtype, tmp_path):
    stack = (np.arange(3 * 64).reshape(3, 8, 8) % 251).astype(dtype)
    for count in (2, 3):
        with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
            for page in stack[:count]:
                file.write(page)
        picture = read_picture(tmp_path / "pages.tif", 8, count)
        exact = picture.square.double() * (65535 if picture.square.is_floating_point() else 1)
        assert torch.equal(exact.round(), torch.from_numpy(stack[:count].astype(np.float64)))
        with pytest.raises(Misfit, match=f"{count} bands, and --channels 5 takes files of 5; training with --channels {count}"):
            read_picture(tmp_path / "pages.tif", 8, 5)
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as file:
        file.write(np.stack([stack[0]] * 3, 2), photometric="rgb")
        file.write(stack[1, :4, :4])
    if dtype == np.uint8:
        assert torch.equal(read_picture(tmp_path / "thumbnail.tif", 8).square[0], torch.from_numpy(stack[0]))


def test_a_header_of_absurd_size_is_damage_and_no_lack_of_memory(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((20, 20), np.uint16))
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("ImageLength", "ImageWidth", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(2**31 - 1)
    with pytest.raises(ValueError, match="bytes of pixels in a file of"):
        read_picture(path, 8)


REFUSED = {
    "Python": MemoryError(),
    "NumPy": np._core._exceptions._ArrayMemoryError((1 << 20, 1 << 20), np.dtype(np.uint8)),
    "the system": OSError(12, "Cannot allocate memory"),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    "Pillow": OSError("out of memory error when reading image file"),
}


@pytest.mark.parametrize("who", REFUSED)
def test_memory_that_is_refused_is_no_damaged_picture(who, tmp_path, capsys, monkeypatch):
    """Neither where it is turned upright, nor at the first look, nor in a batch, here or in a worker."""
    from fastssl.__main__ import main
    from fastssl._ending import foreseen
    from fastssl.train.data import batches

    def refuse(*_, **how):
        raise REFUSED[who]

    spec = grey_folder(tmp_path, lambda rng, label: rng.integers(0, 256, (12, 12)).astype(np.uint8))
    train = load_data(spec, 16).train
    monkeypatch.setattr("fastssl.train.read.ImageOps.exif_transpose", refuse)
    for workers in (0, 1):
        with pytest.raises(MemoryError, match="out of memory while reading") as found:
            next(iter(batches(train, 4, workers=workers)))
        words = f"out of memory while reading {tmp_path / 'a' / '0.png'}; fewer --workers, or smaller pictures, need less"
        assert foreseen(found.value) == words and not train.corrupt_files()
    assert main(["train", "simclr", "--data", spec, "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == f"fastssl train: error: {words}\n"
    assert why(MemoryError()) == "out of memory"


def test_a_name_that_speaks_of_memory_is_a_name(tmp_path):
    place = tmp_path / "out of memory"
    place.mkdir()
    (place / "0.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"0.png: damaged, or no image"):
        load_data(f"folder:{place}")
    (place / "0.png").unlink()
    (place / "0.png").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        read_picture(place / "0.png", 8)


def test_16_bit_colours_name_the_package_that_reads_them(tmp_path, monkeypatch):
    write_png16(tmp_path / "0.png", np.ones((6, 6, 3), np.uint16))
    monkeypatch.setitem(sys.modules, "kornia_rs.io", None)
    with pytest.raises(UsageError, match=r"0.png: a PNG file of colours in 16 bits, which a later kornia_rs reads"):
        load_data(f"folder:{tmp_path}")


def test_a_look_keeps_no_pixels(tmp_path):
    spec = grey_folder(tmp_path, lambda rng, label: np.full((12, 12), 7 + label, np.uint8))
    data = load_data(spec, 16)
    look = Look(spec, [data.train, data.test])
    assert len(look.pictures) == len(look.flat) == 10
    assert all(picture.square.numel() == 0 for picture in look.pictures.values())


def test_nothing_that_can_be_read_is_refused_at_once(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"none of 1 files looked at can be read: 0.png: damaged, or no image"):
        load_data(f"folder:{tmp_path}")
