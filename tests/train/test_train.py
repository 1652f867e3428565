# ruff: noqa: E402
"""The training side: data, SimCLR in a plain loop, the command line, resume after a kill, evaluation, bad input."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

needs = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard")
if any(find_spec(name) is None for name in needs):
    pytest.skip("fastssl[train] is not installed", allow_module_level=True)

from PIL import Image

from fastssl.__main__ import main
from fastssl.functional import nt_xent
from fastssl.methods import SimCLR
from fastssl.train import UsageError, backbones, data
from fastssl.train.augment import TwoViews
from fastssl.train.evaluate import embed, knn_predict, knn_score, linear_probe_accuracy
from tests.support.rotation import every, of_today

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--data", "digits", "--image-size", "16", "--batch-size", "256", "--map", "pca", "--accelerator", "cpu"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos():
    return data.load_data("photos")


def write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (40, 50, 3)) // 2 + 60 * (seed % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def test_photos_are_the_same_every_time(photos):
    again = data.load_data("photos")
    assert torch.equal(photos.train.images, again.train.images) and torch.equal(photos.test.images, again.test.images)
    assert len(photos.class_names) == 18
    assert photos.train.images.shape == (7200, 3, 32, 32) and photos.test.images.shape == (1800, 3, 32, 32)
    assert photos.train.labels.bincount().tolist() == [400] * 18 and photos.test.labels.bincount().tolist() == [100] * 18


@pytest.mark.parametrize("size", [32, 64])
def test_photos_halves_share_no_pixel_column(size):
    for picture in data.shipped_photos().values():
        width = picture.shape[1]
        (first, last), (test_first, test_last) = (data.photo_columns(width, size, train) for train in (True, False))
        assert 0 <= first <= last and last + size <= test_first <= test_last and test_last + size <= width


def test_photos_skips_pictures_that_are_not_shipped(monkeypatch):
    monkeypatch.setattr(data, "PHOTOS", {**data.PHOTOS, "not there": "not_there.png"})
    assert "not there" not in data.shipped_photos()


def test_views_differ_and_follow_the_seed(photos):
    images, _ = photos.train.__getitems__(list(range(0, 7200, 450)))
    views = TwoViews(32)
    torch.manual_seed(0)
    first, second = views(images)
    torch.manual_seed(0)
    again, _ = views(images)
    assert first.shape == second.shape == (16, 3, 32, 32) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.min() >= 0 and first.max() <= 1


def test_simclr_learns_in_a_plain_loop(photos):
    torch.manual_seed(0)
    method, views = SimCLR(backbones.build_backbone("conv")), TwoViews(32)
    optimizer = torch.optim.AdamW(method.parameters(), 2e-3)
    images, _ = photos.train.__getitems__(list(range(0, 7200, 112)))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = method(*views(images))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.backbone.parameters())
    assert np.mean(losses[-3:]) < losses[0] - 0.2


def test_simclr_is_nt_xent_of_the_projections():
    torch.manual_seed(0)
    method = SimCLR(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 24)), projection_dim=16, temperature=0.2)
    assert method.feature_dim == 24
    a, b = torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32)
    assert method.embed(a).shape == (8, 24)
    z0, z1 = method.projection_head(method.embed(torch.cat([a, b]))).chunk(2)
    torch.testing.assert_close(method(a, b), nt_xent(z0, z1, 0.2))


def test_simclr_refuses_bad_input():
    encoder = backbones.build_backbone("conv")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        SimCLR(encoder, temperature=0.0)
    with pytest.raises(ValueError, match="same shape"):
        SimCLR(encoder)(torch.rand(4, 3, 32, 32), torch.rand(3, 3, 32, 32))
    with pytest.raises(ValueError, match="B of at least 2"):
        SimCLR(encoder)(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="expected feature_dim=7"):
        SimCLR(encoder, 7).embed(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_built_in_backbones(name):
    encoder = backbones.build_backbone(name, 32)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, encoder.num_features)


LIBRARY_BACKBONES = """
import torch
from fastssl.methods import SimCLR
from fastssl.train.backbones import build_backbone
names = "timm:mobilenetv3_small_100 timm:vit_tiny_patch16_224 resnet18 torchvision:resnet18 torchvision:mobilenet_v3_small"
for name in names.split():
    method = SimCLR(build_backbone(name, 32)).eval()
    print(name, tuple(method.embed(torch.rand(2, 3, 32, 32)).shape))
    bands = build_backbone(name, 32, channels=5).eval()(torch.rand(2, 5, 32, 32))
    assert bands.shape == (2, method.feature_dim), bands.shape
"""


@every(2)
def test_library_backbones():
    if find_spec("timm") is None or find_spec("torchvision") is None:
        pytest.skip("timm and torchvision are not installed")
    done = subprocess.run([sys.executable, "-c", LIBRARY_BACKBONES], cwd=ROOT, env=environment(), capture_output=True, text=True)
    widths = [line.split("(2, ")[1] for line in done.stdout.splitlines()]
    assert widths == ["1024)", "192)", "512)", "512)", "576)"], done.stderr


def test_knn_predict_against_a_loop():
    torch.manual_seed(0)
    feature, bank, labels = torch.randn(7, 5), torch.randn(40, 5), torch.randint(0, 3, (40,))
    got = knn_predict(feature, bank, labels, 3, knn_k=9, knn_t=0.1)
    for row, order in zip(feature, got, strict=True):
        cosine = torch.stack([torch.dot(row, other) / (row.norm() * other.norm()) for other in bank])
        score = [0.0, 0.0, 0.0]
        for j in cosine.argsort(descending=True)[:9].tolist():
            score[labels[j]] += float(torch.exp(cosine[j] / 0.1))
        assert order.tolist() == sorted(range(3), key=lambda c: -score[c])
    assert knn_predict(feature, bank, labels, 3, knn_k=1000).shape == (7, 3)
    with pytest.raises(ValueError, match="must share D"):
        knn_predict(feature, bank.T, labels, 3)


def test_knn_score_counts_the_right_votes_and_refuses_what_has_no_classes():
    """Of the mean of each image: dark and bright ones are told apart, and equal ones are not."""
    dark, bright = (torch.full((6, 3, 8, 8), value, dtype=torch.uint8) for value in (10, 240))

    def classes(right: int) -> data.TensorImages:
        return data.TensorImages(torch.cat([dark, bright]), torch.tensor([0] * right + [1] * (12 - right)), ("dark", "bright"))

    class Two(torch.nn.Module):
        def forward(self, images):
            return torch.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], 1)

    encoder = Two().train()
    assert knn_score(encoder, data.ImageData("grey", classes(6), classes(6), 8), knn_k=3) == 1.0
    assert knn_score(encoder, data.ImageData("grey", classes(6), classes(9), 8), knn_k=3) == 0.75
    assert encoder.training
    with pytest.raises(ValueError, match="two classes"):
        knn_score(encoder, data.ImageData("grey", classes(0), classes(6), 8))
    with pytest.raises(TypeError, match="encoder must be a module, got method"):
        knn_score(encoder.forward, data.ImageData("grey", classes(6), classes(6), 8))
    with pytest.raises(TypeError, match="data must be an ImageData, as load_data returns it, got TensorImages"):
        knn_score(encoder, classes(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_knn_votes_at_any_temperature(dtype):
    """Towards 0 the nearest neighbour decides, towards infinity the number of neighbours, and the sum of cosines among equals."""
    angles = torch.tensor([0.30, 0.35, 0.36, 0.50, 0.55], dtype=torch.float64)
    bank = torch.stack([angles.cos(), angles.sin()], 1).to(dtype)
    feature, labels = torch.tensor([[3.0, 0.0], [0.0, 0.01]], dtype=dtype), torch.tensor([2, 1, 1, 0, 0])
    for t in (1e-320, 1e-45, 1e-30, 1e-6, 1e-4):
        assert knn_predict(feature, bank, labels, 3, 5, t)[:, 0].tolist() == [2, 0], t
        assert knn_predict(feature, bank, labels, 3, 1, t)[:, 0].tolist() == [2, 0], t
    for t in (10.0, 1e8, 1e30, 1e300, float("inf")):
        assert knn_predict(feature, bank, labels, 3, 5, t).tolist() == [[1, 0, 2], [0, 1, 2]], t
    assert knn_predict(-feature, bank, labels, 3, 1, 1e-3)[:, 0].tolist() == [0, 2]  # cosines far below 1


def test_linear_probe_separates_what_is_separable():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    features = nn.functional.one_hot(labels, 3).float() * 100 + torch.randn(60, 3)
    assert linear_probe_accuracy((features, labels), (features, labels)) == 1.0


def test_features_that_are_not_finite_are_counted():
    images = data.TensorImages(torch.arange(5 * 3 * 64).view(5, 3, 8, 8).to(torch.uint8), torch.zeros(5, dtype=torch.int64), ("a",))
    with pytest.raises(UsageError, match="of 2 of 5 images are NaN or infinite; train with a smaller --lr or --weight-decay"):
        embed(lambda_module(lambda x: torch.where(torch.arange(len(x))[:, None] < 2, torch.inf, 1.0)), images, 8)


def lambda_module(function) -> nn.Module:
    class Module(nn.Module):
        def forward(self, x):
            return function(x)

    return Module()


def test_folder_skips_and_counts_corrupt_files(tmp_path):
    write_images(tmp_path / "a", 9, 0)
    write_images(tmp_path / "b", 9, 1)
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    whole = (tmp_path / "b" / "3.png").read_bytes()
    (tmp_path / "b" / "3.png").write_bytes(whole[: len(whole) // 2])
    images = data.load_data(f"folder:{tmp_path}", 32)
    assert images.class_names == ("a", "b") and images.labelled
    assert (len(images.train), len(images.test)) == (16, 2)
    features, labels = embed(nn.Flatten(), images.train, 32, workers=1)
    assert features.shape == (14, 3 * 32 * 32) and labels.bincount().tolist() == [7, 7]
    assert sorted(Path(name).name for name in images.train.corrupt_files()) == ["0.png", "3.png"]


def test_folder_of_a_split_and_a_flat_one(tmp_path):
    for half, count in (("train", 4), ("val", 2)):
        write_images(tmp_path / "split" / half / "x", count, 0)
        write_images(tmp_path / "split" / half / "y", count, 1)
    split = data.load_data(f"folder:{tmp_path / 'split'}", 16)
    assert (len(split.train), len(split.test), split.class_names) == (8, 4, ("x", "y"))
    write_images(tmp_path / "flat", 10, 0)
    flat = data.load_data(f"folder:{tmp_path / 'flat'}", 16)
    assert (len(flat.train), len(flat.test), flat.labelled) == (8, 2, False)


def test_train_and_eval_on_a_folder(tmp_path, capsys):
    write_images(tmp_path / "images" / "dark", 20, 0)
    write_images(tmp_path / "images" / "light", 20, 1)
    (tmp_path / "images" / "light" / "7.png").write_bytes(b"")
    out = tmp_path / "run"
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "16", "--workers", "1", "--accelerator", "cpu"]
    assert (
        main(
            ["train", "simclr", *where, "--batch-size", "8", "--epochs", "2", "--knn-every", "1", "--map", "pca", "--out", str(out)]
        )
        == 0
    )
    said = capsys.readouterr()
    assert "weighted kNN" in said.out and "linear probe" in said.out and str(out / "map.png") in said.out
    assert said.err.count("warning: 1 of 40 files looked at cannot be used and is skipped: 7.png (damaged, or no image)") == 1
    assert f"warning: 1 of 40 files cannot be used and is skipped: {tmp_path}" in said.err
    for name in ("last.ckpt", "previous.ckpt", "curves.png", "map.png"):
        assert (out / name).stat().st_size > 1000, name
    assert "knn" in (out / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert list((out / "tensorboard").rglob("events*"))
    (out / "curves.png").unlink()
    assert main(["eval", str(out), "--map", "none"]) == 0
    assert "weighted kNN, k=20 " in capsys.readouterr().out and (out / "curves.png").exists()
    assert main(["eval", str(out), "--map", "none", "--knn-k", "1000"]) == 0
    assert "weighted kNN, k=31 " in capsys.readouterr().out  # those of 32 training images that can be read


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.lucky
@every(2)
def test_kill_and_resume_is_the_same_run(tmp_path, capsys):
    """A run killed with SIGKILL in the middle of an epoch and resumed at once ends with the weights, the teacher, its step and the
    queue of an undisturbed one."""
    options = ["moco", *QUICK, "--batch-size", "128", "--epochs", "3", "--knn-every", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["train", *options, "--out", str(whole)]) == 0

    process = subprocess.Popen(
        [sys.executable, "-m", "fastssl", "train", *options, "--out", str(killed)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert (killed / "last.ckpt").exists()
    (killed / f".{16 * '0'}.partial").write_bytes(b"half-written")

    capsys.readouterr()
    assert main(["train", *options, "--out", str(killed), "--resume"]) == 0
    said = capsys.readouterr().out
    assert "resume: 1 of 3 epochs" in said or "resume: 2 of 3 epochs" in said
    assert "epoch   1/3" not in said and "epoch   3/3" in said
    assert not list(killed.glob(".*.partial"))
    ours, theirs = (torch.load(run / "last.ckpt", weights_only=True) for run in (killed, whole))
    assert ours["fastssl"]["history"] == theirs["fastssl"]["history"]
    assert ours["lr_schedulers"][0]["last_epoch"] == theirs["lr_schedulers"][0]["last_epoch"] == 33
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())

    (killed / "last.ckpt").write_bytes((killed / "last.ckpt").read_bytes()[:5000])
    assert main(["eval", str(killed), "--map", "none"]) == 0
    assert "previous.ckpt" in capsys.readouterr().out
    assert main(["train", "moco", "--out", str(whole), "--resume", "--map", "none"]) == 0
    assert "3 of 3 epochs were finished" in capsys.readouterr().out


def test_a_forgotten_resume_loses_nothing(tmp_path, capsys):
    from fastssl.train.cli import set_earlier_run_aside

    (tmp_path / "last.ckpt").write_bytes(b"weights")
    (tmp_path / "mine.txt").write_text("stays")
    set_earlier_run_aside(tmp_path)
    assert (tmp_path / "earlier-1" / "last.ckpt").read_bytes() == b"weights" and (tmp_path / "mine.txt").exists()
    set_earlier_run_aside(tmp_path)
    assert not (tmp_path / "earlier-2").exists()


@pytest.mark.parametrize(
    "arguments, named",
    of_today(
        [
            (["train", "simclr", "--data", "nothing"], "--data"),
            (["train", "simclr", "--data", "folder:/no/such/folder"], "--data"),
            (["train", "simclr", "--data", "folder:{empty}"], "no images"),
            (["train", "simclr", "--data", "digits", "--backbone", "no_such_net"], "--backbone"),
            (["train", "simclr", "--data", "digits", "--backbone", "zoo:net"], "--backbone"),
            (["train", "simclr", "--data", "digits", "--batch-size", "100000"], "--batch-size"),
            (["train", "simclr", "--batch-size", "1"], "--batch-size"),
            (["train", "simclr", "--temperature", "0"], "--temperature"),
            (["train", "simclr", "--temperature", "nan"], "--temperature"),
            (["train", "simclr", "--epochs", "many"], "--epochs"),
            (["train", "simclr", "--min-scale", "1.5"], "--min-scale"),
            (["train", "simclr", "--data", "digits", "--devices", "none", "--out", "{empty}"], "--devices"),
            (["train", "simclr", "--data", "digits", "--precision", "7", "--out", "{empty}"], "--precision"),
            (["train", "simclr", "--no-such-option"], "--no-such-option"),
            (["train", "no_such_method"], "method"),
            (["train"], "METHOD"),
            (["eval", "/no/such/run"], "/no/such/run"),
            (["eval", "{empty}"], "no checkpoint"),
            (["no_such_command"], "no_such_command"),
        ],
        3,
    ),
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, tmp_path, capsys):
    assert main([argument.replace("{empty}", str(tmp_path)) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said and "error:" in said


def test_resume_refuses_other_settings():
    from fastssl.train.cli import resumed_config
    from fastssl.train.recipes import RECIPES

    assert resumed_config({"epochs": 20}, RECIPES["simclr"].settings(epochs=10)).epochs == 20
    with pytest.raises(UsageError, match="--backbone vit"):
        resumed_config({"backbone": "vit"}, RECIPES["simclr"].settings())


def test_import_fastssl_leaves_the_training_libraries_alone():
    names = {"lightning", "kornia", "sklearn", "matplotlib", "PIL", "fastssl.train"}
    code = f"import sys, fastssl.methods; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
