# ruff: noqa: E402
"""Folders as they are: splits, levels, hidden entries, labels that do not match; runs on 16 bits and on six bands."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.folders import AB, check_layout, counts, tree

needs = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard", "tifffile")
if any(find_spec(name) is None for name in needs):
    pytest.skip("fastssl[train] is not installed", allow_module_level=True)

import tifffile
from PIL import Image

from fastssl.__main__ import main
from fastssl.train import UsageError
from fastssl.train.backbones import build_backbone
from fastssl.train.layout import find_images

pytestmark = pytest.mark.usefixtures("one_thread")


# files; images of each class that train, and that test; words of the notes; words of each warning, in order
LAYOUTS = {
    "train + valid": (
        {"train/a/": 4, "train/b/": 5, "valid/a/": 2, "valid/b/": 1},
        AB,
        {"a": 2, "b": 1},
        ["split of train and valid"],
        [],
    ),
    "Training + Validation": (
        {"Training/a/": 4, "Training/b/": 5, "Validation/a/": 2, "Validation/b/": 1},
        AB,
        {"a": 2, "b": 1},
        ["split of Training and Validation"],
        [],
    ),
    "TRAIN + test + val": (
        {"TRAIN/a/": 4, "TRAIN/b/": 5, "test/a/": 1, "test/b/": 1, "val/a/": 3, "val/b/": 3},
        AB,
        {"a": 1, "b": 1},
        ["split of TRAIN and test", "not looked at: val"],
        [],
    ),
    "train alone": ({"train/a/": 5, "train/b/": 6}, AB, {"a": 1, "b": 1}, ["every 5th image of train"], []),
    "an empty test folder": (
        {"train/a/": 5, "train/b/": 6, "test/": 0},
        AB,
        {"a": 1, "b": 1},
        ["every 5th image of train"],
        ["test has no images"],
    ),
    "test without classes": (
        {"train/a/": 5, "train/b/": 6, "val/": 7},
        AB,
        {"a": 1, "b": 1},
        ["every 5th"],
        ["val has no images with classes"],
    ),
    "test without classes, val with": (
        {"train/a/": 4, "train/b/": 5, "val/a/": 1, "val/b/": 1, "test/images/": 7},
        AB,
        {"a": 1, "b": 1},
        ["split of train and val"],
        ["test has no images with classes"],
    ),
    "a class called train": (
        {"train/": 5, "bus/": 6, "tram/deep/er/": 1, "notes/a.txt": 1},
        {"root": 4},
        {"root": 1},
        ["every 5th image of train", "not looked at: bus, notes, tram"],
        ["train of {} is taken for the training part: bus, tram are folders of images beside it and are left out; where train"],
    ),
    "a split and a folder that is none": (
        {"train/a/": 4, "train/b/": 5, "test/a/": 2, "test/b/": 1, "val/a/": 1, "extra/": 2},
        AB,
        {"a": 2, "b": 1},
        ["split of train and test", "not looked at: extra, val"],
        ["extra is a folder of images beside it and is left out"],
    ),
    "no classes at all": ({"train/": 4, "test/": 2}, {"root": 4}, {"root": 2}, ["split of train and test"], []),
    "Tiny-ImageNet without its table": (
        {"train/a/images/": 5, "train/b/images/": 6, "val/images/": 4},
        AB,
        {"a": 1, "b": 1},
        ["every 5th"],
        ["val has no images with classes"],
    ),
    "images level": ({"Images/a/": 5, "Images/b/": 6, "annotations/a.xml": 1}, AB, {"a": 1, "b": 1}, ["every 5th"], []),
    "images level with a split": (
        {"images/train/a/": 4, "images/train/b/": 5, "images/val/a/": 1, "images/val/b/": 1, "labels/train/a.txt": 1},
        AB,
        {"a": 1, "b": 1},
        ["split of train and val"],
        [],
    ),
    "a class called images": ({"images/": 5, "b/": 6}, {"images": 4, "b": 5}, {"images": 1, "b": 1}, [], []),
    "hidden and system entries": (
        {
            "a/": 5,
            "b/": 6,
            ".ipynb_checkpoints/": 3,
            "__MACOSX/": 3,
            "a/._0.png": 1,
            "b/.DS_Store": 1,
            "Thumbs.db": 1,
            "@eaDir/": 1,
        },
        AB,
        {"a": 1, "b": 1},
        ["left out: 6 hidden entries"],
        [],
    ),
    "other files": (
        {"a/": 5, "b/": 6, "a/x.csv": 1, "b/y.csv": 1, "notes": 1},
        AB,
        {"a": 1, "b": 1},
        ["3 other files (2 .csv, 1 without suffix)"],
        [],
    ),
    "an empty class": ({"a/": 5, "b/": 6, "c/": 0}, AB, {"a": 1, "b": 1}, [], ["no images in c of"]),
    "a class too small to test": (
        {"a/": 5, "b/": 6, "c/": 3},
        AB | {"c": 3},
        {"a": 1, "b": 1},
        [],
        ["1 class without test images (fewer than 5 images): c"],
    ),
    "classes that are all too small to test": (
        {"a/": 4, "b/": 1},
        {"a": 4, "b": 1},
        {},
        ["every 5th image"],
        ["no test images: every 5th image of a class is one, and no class has 5; kNN and linear probe are left out"],
    ),
    "too few images to test": ({"./": 4}, {"root": 4}, {}, ["every 5th"], ["is one, and there are fewer than 5"]),
    "labels not shared": (
        {"train/a/": 4, "train/b/": 5, "test/b/": 1, "test/c/": 2},
        AB,
        {"b": 1, "c": 2},
        [],
        ["1 class without test images: a", "1 class without training images: c"],
    ),
    "images beside classes": (
        {"a/": 5, "b/": 6, "stray.png": 1},
        AB,
        {"a": 1, "b": 1},
        [],
        ["1 image lies beside the class folders"],
    ),
    "arrays beside pictures": ({"a/": 5, "b/": 6, "a/0.npy": 1}, AB, {"a": 1, "b": 1}, ["1 other file (1 .npy)"], []),
    "arrays alone in a class": (
        {"a/": 5, "b/": 6} | {f"c/{i}.npy": 1 for i in range(9)},
        AB,
        {"a": 1, "b": 1},
        ["9 other files (9 .npy)"],
        ["no images but .npy files in c, left out"],
    ),
    "arrays alone": ({f"a/{i}.npy": 1 for i in range(5)} | {f"b/{i}.NPY": 1 for i in range(6)}, AB, {"a": 1, "b": 1}, [], []),
    "a class called test": ({"test/": 5, "control/": 6}, {"test": 4, "control": 5}, {"test": 1, "control": 1}, [], ["test of"]),
    "runs among the classes": (
        {
            "a/": 5,
            "b/": 6,
            "a/old/last.ckpt": 1,
            "a/old/map.png": 1,
            "a/old/csv/": 3,
            "runs/mae/previous.ckpt": 1,
            "runs/mae/curves.png": 1,
        },
        AB,
        {"a": 1, "b": 1},
        ["left out: files of 2 runs (a/old, runs/mae)"],
        [],
    ),
    "a run in a flat folder": (
        {"./": 10, "run/last.ckpt": 1, "run/curves.png": 1, "run/earlier-1/map.png": 1},
        {"root": 8},
        {"root": 2},
        ["left out: files of 1 run (run)"],
        [],
    ),
    "a run of before in the folder itself": (
        {
            "./": 9,
            "last.ckpt": 1,
            "curves.png": 1,
            "map.png": 1,
            "earlier-2/reconstruction.png": 1,
            "earlier.png": 1,
            "csv/a.csv": 1,
        },
        {"root": 8},
        {"root": 2},
        ["files of 1 run ("],
        [],
    ),
    "runs of before in a level and in a part": (
        {"images/train/a/": 4, "images/train/b/": 5, "images/val/b/": 1, "images/last.ckpt": 1, "images/map.png": 1}
        | {"images/train/last.ckpt": 1, "images/train/earlier-1/curves.png": 1},
        AB,
        {"b": 1},
        ["files of 2 runs (images, images/train)", "split of train and val"],
        ["1 class without test images: a"],
    ),
    "a run of before in a class": (
        {"a/": 5, "b/": 6, "c/": 3, "c/last.ckpt": 1, "c/map.png": 1},
        AB,
        {"a": 1, "b": 1},
        ["files of 1 run (c)"],
        ["c holds a run and 3 other images, which are left out with it"],
    ),
    "pictures beside a checkpoint of another name": (
        {"a/": 5, "b/": 6, "best.ckpt": 1, "curves.png": 1, "a/reconstruction.png": 1},
        AB | {"a": 5},
        {"a": 1, "b": 1},
        ["1 other file (1 .ckpt)"],
        [],
    ),
    "one folder too high": (
        {"set/a/": 5, "set/b/": 5},
        {"set": 8},
        {"set": 2},
        [],
        ["all images are of one class, set: a, b are folders in it"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, tmp_path):
    check_layout(tmp_path / "root", *LAYOUTS[name])


def test_tiny_imagenets_table(tmp_path):
    root = tree(tmp_path, {"train/n01/images/": 3, "train/n02/images/": 3, "val/images/": 5, "test/images/": 4})
    rows = [f"{i}.png\tn0{1 + i % 2}\t0\t0\t9\t9" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows))
    found = find_images(root)
    assert {label: [file.name for file in files] for label, files in found.test.items()} == {
        "n01": ["0.png", "2.png"],
        "n02": ["1.png", "3.png"],
    }
    assert counts(found.train) == {"n01": 3, "n02": 3} and "split of train and val" in found.notes
    assert len(found.warnings) == 2 and "1 of 5 images not in" in found.warnings[1]


def test_layouts_that_are_refused(tmp_path):
    for name, places, words in (
        ("twice", {"train/a/": 1, "Train/a/": 1}, "Train and train are both the training part"),
        ("tests", {"val/a/": 1, "test/a/": 1}, "test, val but no train folder"),
        (
            "none",
            {"a/x.txt": 1, "a/y.heic": 1, ".git/": 1},
            r"no images there .*2 other files \(1 .heic, 1 .txt\); 1 hidden entry",
        ),
        ("untrained", {"train/": 0, "test/a/": 3}, "no images in train there"),
    ):
        with pytest.raises(UsageError, match=words):
            find_images(tree(tmp_path / name, places))
    with pytest.raises(UsageError, match="no such folder"):
        find_images(tmp_path / "absent")


# --- runs -------------------------------------------------------------------------------------------------------------------


def deep_folder(folder: Path, bands: int) -> str:
    """Two classes of 12-bit pictures in 16 bits: grey PNG, or TIFF of several bands."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dim", "lit")):
        (folder / name).mkdir(parents=True)
        for i in range(15):
            pixels = (rng.integers(0, 1200, (20, 22, bands)) + 1500 * label).astype(np.uint16)
            if bands == 1:
                Image.fromarray(pixels[..., 0]).save(folder / name / f"{i}.png")
            else:
                tifffile.imwrite(folder / name / f"{i}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return f"folder:{folder}"


def options(spec: str, *more: str) -> list[str]:
    quick = ["--image-size", "16", "--batch-size", "8", "--workers", "0", "--map", "pca", "--accelerator", "cpu"]
    return ["--data", spec, *quick, *more]


@pytest.mark.parametrize("bands", [1, 6])
def test_a_run_on_deep_pictures_is_evaluated_and_resumed(bands, tmp_path, capsys):
    spec, out = deep_folder(tmp_path / "images", bands), str(tmp_path / "run")
    deep = options(spec, "--channels", str(bands), "--pixel-range", "0,4095")
    assert main(["train", "simclr", *deep, "--epochs", "1", "--out", out]) == 0
    said = capsys.readouterr()
    first, second = said.out.splitlines()[:2]
    kind = "grey" if bands == 1 else "6-band"
    assert first.startswith(
        f"simclr, conv, on {spec}: 24 training and 6 test images of 16 x 16 x {bands} channels, 2 classes (dim, lit)"
    )
    assert "every 5th image of images is a test image" in first and f"all 30 files: 22 x 20 pixels, {kind} uint16 from " in first
    assert second == "jitter of brightness and contrast only: saturation, hue and grey views need 3 channels"
    assert "weighted kNN" in said.out and (tmp_path / "run" / "map.png").stat().st_size > 1000 and "looked at" not in said.err
    assert main(["train", "simclr", *deep, "--epochs", "2", "--out", out, "--resume"]) == 0
    said = capsys.readouterr()
    assert "resume: 1 of 2 epochs" in said.out and "epoch   2/2" in said.out and "looked at" not in said.err
    assert main(["train", "simclr", *deep[:-1], "0,65535", "--epochs", "2", "--out", out, "--resume"]) == 2
    assert "--pixel-range" in capsys.readouterr().err
    assert main(["eval", out, "--map", "pca", "--workers", "0"]) == 0
    assert f"{kind} uint16 from" in capsys.readouterr().out
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["state_dict"]["method.backbone.0.weight"].shape[1] == bands
    assert state["fastssl"]["config"]["pixel_range"] == (0.0, 4095.0)
    other = ["eval", out, "--map", "none", "--data", "digits"]
    assert main(other) == (0 if bands == 1 else 2)
    said = capsys.readouterr()
    assert "pixel range" not in said.err and ("--channels 6: --data digits" in said.err) == (bands == 6)


def test_masked_pictures_of_six_bands(tmp_path, capsys):
    spec = deep_folder(tmp_path / "images", 6)
    small = ["--decoder-dim", "16", "--decoder-depth", "1", "--map", "none", "--epochs", "1"]
    deep = options(spec, "--channels", "6", "--pixel-range", "0,4095")
    assert main(["train", "mae", *deep, *small, "--out", str(tmp_path / "mae")]) == 0
    assert "error" in capsys.readouterr().out and (tmp_path / "mae" / "reconstruction.png").exists()
    assert main(["train", "cmc", *deep, "--out", str(tmp_path / "cmc")]) == 2
    assert "--channels 6: cmc parts colour images" in capsys.readouterr().err
    assert main(["train", "simclr", *options(spec), "--out", str(tmp_path / "three")]) == 2
    said = capsys.readouterr().err
    assert (
        "30 of 30 files looked at cannot be used" in said
        and "training with --channels 6 takes all" in said
        and said.count("\n") == 1
    )


@pytest.mark.parametrize("text", ["4095", "1,2,3", "5,5", "9,1", "0,inf", "nan,1", "low,high"])
def test_a_pixel_range_that_is_none(text, capsys):
    assert main(["train", "simclr", f"--pixel-range={text}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--pixel-range" in said and text in said


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_built_in_backbones_of_other_channels(name):
    for channels in (1, 13):
        encoder = build_backbone(name, 32, channels).eval()
        assert encoder(torch.rand(2, channels, 32, 32)).shape == (2, encoder.num_features)


def test_every_picture_of_a_run_is_known_as_one():
    """What a new run in the folder sets aside, and what is no image of a data set there."""
    from fastssl.train.rundir import DRAWN

    sources = "".join(path.read_text() for path in (Path(__file__).resolve().parents[2] / "fastssl" / "train").rglob("*.py"))
    assert set(re.findall(r'(?:\w+ / |run\.place\()"(\w+\.png)"', sources)) == set(DRAWN)
