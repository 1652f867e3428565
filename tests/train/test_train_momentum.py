"""The methods with a teacher and SimSiam in ``fastssl train``: training for real, the collapse watch, few labels, resume."""

import dataclasses
import math
import random

import pytest
import torch

from fastssl.functional import negative_cosine
from fastssl.methods import SimSiam
from tests.support.rotation import every, of_today
from tests.support.training import assert_same_runs, needs_train, train_briefly, train_until, write_grey_classes

NEW = ("moco", "moco_v3", "byol", "simsiam", "mean_teacher")


pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


# --- the collapse watch ----------------------------------------------------------------------------------------------


def test_spread_and_rank_of_known_features():
    from fastssl.train.evaluate import collapse_watch, effective_rank, spread

    even, line = torch.randn(4000, 64), torch.randn(4000, 1) * torch.ones(64)
    assert spread(even) == pytest.approx(1.0, abs=0.01) and effective_rank(even) > 60
    assert spread(7.0 * line.abs()) == pytest.approx(0.0, abs=1e-6)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.eye(6, 9)) == pytest.approx(6.0) and effective_rank(torch.eye(9, 6)) == pytest.approx(6.0)
    singular = torch.linalg.svdvals(even[:50].double())
    share = singular / singular.sum()
    assert effective_rank(even[:50]) == pytest.approx(math.exp(-(share * share.log()).sum()))
    assert collapse_watch(torch.zeros(5, 4)) == {"std": 0.0, "rank": pytest.approx(1.0)} and collapse_watch(even[:1]) == {}


class Collapsing(SimSiam):
    """Pulls the features of two views together, with nothing to hold them apart."""

    def forward(self, view0, view1):
        return negative_cosine(self.embed(view0), self.embed(view1))


@every(3)
def test_a_collapse_is_seen_and_said(tmp_path, capsys, monkeypatch):
    """A transformer: batch normalisation alone would hold the features apart for a while."""
    from fastssl.__main__ import main
    from fastssl.train.recipes import RECIPES
    from fastssl.train.recipes._images import backbone

    write_grey_classes(tmp_path / "images")
    recipe = dataclasses.replace(RECIPES["simsiam"], build=lambda config, data: Collapsing(backbone(config, data)))
    monkeypatch.setitem(RECIPES, "simsiam", recipe)
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "16", "--batch-size", "8", "--workers", "0"]
    options = [*where, "--backbone", "vit", "--lr", "0.01", "--epochs", "2", "--map", "none", "--accelerator", "cpu"]
    out = tmp_path / "run"
    assert main(["train", "simsiam", *options, "--out", str(out)]) == 0
    said = capsys.readouterr()
    rows = torch.load(out / "last.ckpt", weights_only=True)["fastssl"]["history"]
    assert rows[-1]["std"] < 0.15 * rows[0]["std"] and rows[-1]["rank"] < rows[0]["rank"]
    assert f"std {rows[-1]['std']:.3f}  rank {rows[-1]['rank']:.1f}" in said.out and "effective rank" in said.out
    assert "warning: the embeddings are collapsing" in said.err
    table = (out / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "std" in table and "rank" in table


def test_images_without_classes_have_the_watch_alone(tmp_path, capsys):
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images' / 'dark'}", "--image-size", "16", "--batch-size", "4", "--workers", "0"]
    options = [*where, "--epochs", "1", "--map", "none", "--accelerator", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", "byol", *options]) == 0
    said = capsys.readouterr()
    line = next(line for line in said.out.splitlines() if line.startswith("epoch"))
    assert "std" in line and "rank" in line and "kNN" not in line
    assert "kNN and linear probe left out" in said.out and "warning" not in said.err


# --- training --------------------------------------------------------------------------------------------------------

# method: epochs, batch, least gain in kNN accuracy over the untrained encoder, options of the recipe
TRAINING = {
    "moco": (4, 128, 0.15, {"bn_splits": 2}),
    "moco_v3": (4, 128, 0.15, {}),
    "byol": (4, 128, 0.12, {}),
    "simsiam": (4, 128, 0.1, {"hidden_dim": 512, "projection_dim": 256}),
    "mean_teacher": (4, 64, 0.1, {"consistency_weight": 30.0}),
}


@pytest.mark.parametrize("name", of_today(NEW, 5))
def test_training_beats_the_untrained_encoder(name):
    """A quarter of the photographs' crops, 24 x 24; kNN on held-out ones. The untrained encoder's batch norms are calibrated."""
    epochs, batch, gain, options = TRAINING[name]
    found = train_briefly(name, epochs=epochs, batch_size=batch, image_size=24, **options)
    assert found.losses[-1] < found.losses[0] - 0.1
    assert found.after["knn"] > found.before["knn"] + gain
    assert found.after["std"] > found.before["std"]


def test_few_labels_hides_the_others():
    from fastssl.train.data import FewLabels, TensorImages

    labels = torch.arange(60) % 3
    whole = TensorImages(torch.arange(60, dtype=torch.uint8).reshape(60, 1, 1, 1).expand(60, 3, 2, 2), labels, ("a", "b", "c"))
    few = FewLabels(whole, 4, 1)
    assert labels[few.known].bincount().tolist() == [4, 4, 4] and len(few) == 60
    assert set(few.known.tolist()) == set(FewLabels(whole, 4, 1).known.tolist()) != set(FewLabels(whole, 4, 2).known.tolist())
    images, shown = few.__getitems__(list(range(59, 19, -1)))
    index = images[:, 0, 0, 0].long()
    assert (shown[:10] >= 0).all() and index[10:].tolist() == list(range(49, 19, -1))
    known = torch.isin(index, few.known)
    assert torch.equal(shown[known], labels[index[known]]) and (shown[~known] == -1).all()


OPTIONS = {
    "moco": ["--bn-splits", "2", "--symmetric"],
    "moco_v3": ["--optimizer", "lars"],
    "mean_teacher": ["--labels-per-class", "3"],
}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    """Weights, teacher, step, queue and pointer of a run that was not interrupted; the schedule has the trainer's steps."""
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "16", "--batch-size", "8", "--accelerator", "cpu"]
    options = [name, *where, *OPTIONS.get(name, []), "--workers", "0", "--map", "none", "--epochs", "3", "--knn-every", "2"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main(["train", *options, "--out", str(whole)]) == 0
    said = capsys.readouterr()
    assert f"{name}, conv, on folder:" in said.out and "kNN" in said.out and "std" in said.out and "collapsing" not in said.err
    stop = random.Random(name).randrange(3, 9)
    replaced = {"total_steps": lambda *_: 1000} if name in ("moco_v3", "byol", "mean_teacher") else {}  # the trainer knows better
    train_until(stop, [*options, "--out", str(parted)], **replaced)
    assert main(["train", *options, "--out", str(parted), "--resume"]) == 0
    assert f"resume: {stop // 3} of 3 epochs" in capsys.readouterr().out
    state = assert_same_runs(parted, whole)
    if name != "simsiam":
        assert int(state["method.step"]) == 9
        assert any(key.startswith("method.teacher.module.") for key in state)
    if name == "moco":
        assert state["method.queue.queue_ptr"].tolist() == [9 * 16 % 12]
    assert main(["eval", str(whole), "--data", "digits", "--map", "none"]) == 0
    assert "accuracy" not in capsys.readouterr().out.replace("accuracy on test images", "")


@every(3)
def test_the_options_of_a_method_with_a_teacher(capsys):
    from fastssl.__main__ import main

    for method, wanted in {
        "moco": ["--momentum", "--bn-splits", "--symmetric", "--head", "--queue-size"],
        "byol": ["--momentum", "--final-momentum"],
        "mean_teacher": ["--labels-per-class", "--consistency-weight", "(default: 0.999)"],
    }.items():
        with pytest.raises(SystemExit):
            main(["train", method, "--help"])
        said = capsys.readouterr().out
        assert all(option in said for option in wanted) and f"runs/{method}" in said
    assert main(["train", "moco", "--bn-splits", "200"]) == 2 and "--bn-splits 200" in capsys.readouterr().err
    assert main(["train", "byol", "--momentum", "2"]) == 2 and "--momentum" in capsys.readouterr().err
    assert main(["train", "simsiam", "--momentum", "0.9"]) == 2 and "--momentum" in capsys.readouterr().err
