"""``fastssl eval --fine-tune``: the same bits each time, a checkpoint that loads, gradients for every image method, refusals."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def tune(run, *more: str) -> int:
    from fastssl.__main__ import main

    return main(["eval", str(run), "--fine-tune", "2", "--workers", "0", *more])


def test_started_again_it_writes_the_same_bits(own_grey_run, capsys, monkeypatch):
    """Also where the first start was killed before it had written its file; the run's own checkpoint stays as it was."""
    from fastssl.__main__ import main
    from fastssl.train import checkpoints

    before, path = (own_grey_run / "last.ckpt").read_bytes(), own_grey_run / "fine_tuned.ckpt"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.os, "replace", killed)
    assert tune(own_grey_run) == 130 and not path.exists()
    monkeypatch.undo()
    capsys.readouterr()
    assert tune(own_grey_run) == 0
    said, first = capsys.readouterr(), torch.load(path, weights_only=True)
    assert "fine-tuned, epoch   2/2  loss" in said.out and "from scratch, epoch   2/2  loss" in said.out and said.err == ""
    assert tune(own_grey_run) == 0
    again = torch.load(path, weights_only=True)
    assert capsys.readouterr().out == said.out and again["fine_tuned"] == first["fine_tuned"]
    for part in ("state_dict", "linear"):
        assert all(torch.equal(value, again[part][name]) for name, value in first[part].items())
    assert not list(own_grey_run.glob(".*.partial")) and (own_grey_run / "last.ckpt").read_bytes() == before
    assert tune(own_grey_run, "--seed", "1") == 0
    assert not torch.equal(torch.load(path, weights_only=True)["linear"]["weight"], first["linear"]["weight"])
    stored = torch.load(own_grey_run / "last.ckpt", weights_only=True)["state_dict"]
    moved = [name for name, value in first["state_dict"].items() if not torch.equal(value, stored[name])]
    assert all(f"method.backbone.{i}.weight" in moved for i in (0, 3, 6, 9))
    assert not any("head" in name for name in moved)  # the projection has no part in it
    assert main(["eval", str(path), "--map", "none", "--workers", "0"]) == 0
    assert "weighted kNN" in capsys.readouterr().out


def test_it_learns_the_classes(own_grey_run, capsys):
    """Two shades of grey, from all labels: both trainings reach them, and the saved linear layer is the one that was scored."""
    assert tune(own_grey_run, "--lr", "0.01", "--fine-tune", "12") == 0
    scores = next(line for line in capsys.readouterr().out.splitlines() if "encoder and linear layer" in line).split()[-2:]
    assert all(float(score) > 0.8 for score in scores)
    state = torch.load(own_grey_run / "fine_tuned.ckpt", weights_only=True)
    made = state["fine_tuned"]
    assert made["class_names"] == ["dark", "light"] and made["epochs"] == 12 and state["linear"]["weight"].shape == (2, 256)
    assert [f"{made['accuracy'][name]:.3f}" for name in ("from scratch", "fine-tuned")] == scores
    page = (own_grey_run / "report.html").read_text()
    assert "<h3>Fine-tuning</h3>" in page and "24 labelled images, 12 epochs" in page


def test_what_is_refused(own_grey_run, capsys):
    for options, words in (
        (["--labels-per-class", "13"], "--labels-per-class 13: class dark has only 12 training images"),
        (["--lr", "1e30"], "--lr: "),
        (["--top", "2"], "--top: is used with --retrieve only"),
    ):
        assert tune(own_grey_run, *options) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and words in said
    assert tune(own_grey_run, "--labels-per-class", "2") == 0 and "the classes of 4 images for 2 epochs" in capsys.readouterr().out


def test_the_saved_layer_has_the_standardisation_in_it():
    from fastssl.train.fine_tune import Classifier

    class Flat(torch.nn.Flatten):
        def embed(self, images):
            return 5 * self(images * self.scale) + 3

    method = Flat()
    method.scale = torch.nn.Parameter(torch.tensor(1.0))
    classifier = Classifier(method, 3, torch.rand(2, 3, 2, 2))
    for _ in range(20):
        classifier(torch.rand(8, 3, 2, 2))
    classifier.eval()
    images, layer = torch.rand(5, 3, 2, 2), classifier.on_features()
    torch.testing.assert_close(method.embed(images) @ layer["weight"].T + layer["bias"], classifier(images), rtol=1e-4, atol=1e-4)


def image_methods() -> list[str]:
    from fastssl.train.recipes import RECIPES
    from fastssl.train.recipes._images import ImageSettings

    return [name for name, recipe in RECIPES.items() if issubclass(recipe.settings, ImageSettings)]


def gradients_of(name: str) -> set[str]:
    """The parameters of a method that a linear layer on its features moves."""
    from fastssl.train.fine_tune import Classifier
    from fastssl.train.recipes import RECIPES

    recipe = RECIPES[name]
    config = recipe.settings()
    data = recipe.load(config)
    images = torch.rand(4, 3, data.image_size, data.image_size)
    classifier = Classifier(recipe.build(config, data), 2, images[:2])
    classifier(images).square().sum().backward()
    return {key for key, value in classifier.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}


@pytest.mark.skipif("not __import__('importlib.util').util.find_spec('lightning')", reason="fastssl[train] is not installed")
@pytest.mark.parametrize("turn", of_today(range(6), 6))
def test_every_image_method_can_be_fine_tuned(turn):
    for name in image_methods()[turn::6]:
        moved = gradients_of(name)
        assert "linear.weight" in moved and len([key for key in moved if key.startswith("method.")]) >= 4, name


def test_methods_without_labels_or_images_are_refused(tmp_path):
    from fastssl.train import UsageError
    from fastssl.train.downstream import TrainedRun
    from fastssl.train.recipes import RECIPES

    def run_of(name: str, data) -> TrainedRun:
        return TrainedRun(tmp_path / "last.ckpt", {}, RECIPES[name].settings(), data, torch.device("cpu"), 0)

    def half(labels):
        return SimpleNamespace(labels=labels)

    with pytest.raises(UsageError, match=r"is one of bert, which learns from sentences; .* need labels"):
        _ = run_of("bert", SimpleNamespace(train=half(None), test=half(None))).labelled
    sounds = Sounds("speech", half(torch.tensor([0, 1])), half(torch.tensor([0])))
    run = run_of("simclr", sounds)
    assert run.labelled.train is sounds.train
    with pytest.raises(UsageError, match=r"fine-tuning and retrieval need images"):
        _ = run.images


@dataclass(frozen=True)
class Sounds:
    """Samples with labels that are no images."""

    name: str
    train: SimpleNamespace
    test: SimpleNamespace
