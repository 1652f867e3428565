"""Barlow Twins, VICReg, LeJEPA, DeepCluster and I-JEPA in ``fastssl train``: training for real, resume, clusters, options."""

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import (
    assert_resumes_bit_for_bit,
    assert_same_runs,
    needs_train,
    train_briefly,
    write_grey_classes,
)

NEW = ("barlow_twins", "vicreg", "lejepa", "deepcluster", "ijepa")

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

# method: epochs, batch, least gain in kNN accuracy over the untrained encoder, share of the first loss, options of the recipe; the
# gain is at most half of what was seen, since training on another CPU is another seed
TRAINING = {
    "barlow_twins": (4, 64, 0.1, 0.8, {"projection_dim": 128}),
    "vicreg": (4, 64, 0.1, 0.97, {"projection_dim": 128}),
    "lejepa": (4, 64, 0.1, 0.8, {"slices": 64}),
    "deepcluster": (4, 64, 0.1, 0.97, {"num_clusters": 40}),
    "ijepa": (3, 64, 0.0, 0.9, {"patch_size": 8}),
}


@pytest.mark.parametrize("name", of_today(NEW, 5))
def test_training_beats_the_untrained_encoder(name):
    """A quarter of the photographs' crops; kNN on held-out ones."""
    epochs, batch, gain, share, options = TRAINING[name]
    found = train_briefly(name, epochs=epochs, batch_size=batch, image_size=32 if name == "ijepa" else 24, **options)
    assert found.losses[-1] < share * found.losses[0]
    assert found.after["knn"] > found.before["knn"] + gain
    assert found.after.get("found", 1.0) > found.before.get("found", 0.0) + 0.15
    assert found.after["std"] > 0.5 * found.before["std"] and found.after["rank"] > 0.5 * found.before["rank"]


OPTIONS = {
    "barlow_twins": ["--projection-dim", "16"],
    "vicreg": ["--projection-dim", "16"],
    "lejepa": ["--num-views", "3", "--slices", "8", "--projection-dim", "8"],
    "deepcluster": ["--num-clusters", "4"],
    "ijepa": ["--patch-size", "2", "--predictor-dim", "8", "--predictor-depth", "1"],
}


@pytest.mark.parametrize("name", of_today(NEW, 5))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    """Weights, teacher, step, pseudo-labels of a run that was not interrupted."""
    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "12", "--batch-size", "8"]
    said = (f"{name}, ", "kNN", "std")
    state = assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=said)
    if name == "deepcluster":
        assert state["method.round"] == 3 and sorted(state["method.labels"].unique().tolist()) == [0, 1, 2, 3]
        assert (tmp_path / "whole" / "clusters.png").exists()


def test_deepcluster_goes_on_in_the_middle_of_a_round_and_is_evaluated_on_other_data(tmp_path, capsys, monkeypatch):
    """A signal in the second epoch: its labels are those of the checkpoint, and no new round is started for it."""
    import signal

    from fastssl.__main__ import main
    from fastssl.methods import DeepCluster
    from fastssl.train import loop

    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "12", "--batch-size", "8", "--accelerator", "cpu"]
    options = ["train", "deepcluster", *where, "--num-clusters", "4", "--workers", "0", "--map", "none", "--epochs", "2"]
    whole, parted, rounds = tmp_path / "whole", tmp_path / "parted", []
    assert main([*options, "--out", str(whole)]) == 0
    start_round, at_step = DeepCluster.start_round, loop.MethodModule.on_train_batch_end

    def interrupted(module, outputs, batch, batch_idx):
        if not rounds and module.global_step == 4:
            signal.raise_signal(signal.SIGTERM)
        at_step(module, outputs, batch, batch_idx)

    monkeypatch.setattr(loop.MethodModule, "on_train_batch_end", interrupted)
    assert main([*options, "--out", str(parted)]) != 0
    rounds.append("resumed")
    monkeypatch.setattr(DeepCluster, "start_round", lambda *given, **how: (rounds.append(1), start_round(*given, **how)))
    assert main([*options, "--out", str(parted), "--resume"]) == 0
    assert "1 of 2 epochs and 1 of the next one's steps" in capsys.readouterr().out
    assert rounds == ["resumed"]
    assert_same_runs(parted, whole)
    assert main(["eval", str(whole), "--data", "digits", "--map", "none"]) == 0
    assert "clusters.png" not in capsys.readouterr().out
    capsys.readouterr()
    assert main([*options, "--num-clusters", "400", "--out", str(whole)]) == 2
    said = capsys.readouterr()
    assert "--num-clusters 400: must be at most 24, the number of training images" in said.err and not said.out
    assert (whole / "last.ckpt").exists()  # the run of before stays where it is


def test_the_picture_shows_images_of_the_same_cluster_in_a_row(tmp_path):
    import numpy
    from PIL import Image

    from fastssl.train.clusters import COLUMNS, draw_clusters, shown_clusters
    from fastssl.train.data import ImageData, TensorImages

    labels = torch.tensor([0] * 30 + [2] * 4 + [1] * 3 + [-1])
    rows = shown_clusters(labels)
    assert [(cluster, len(members)) for cluster, members in rows] == [(0, COLUMNS), (2, 4), (1, 3)]
    assert all((labels[members] == cluster).all() and len(set(members)) == len(members) for cluster, members in rows)
    many = shown_clusters(torch.arange(1000) % 50)
    assert len(many) == len(dict(many)) == 10
    grey = torch.tensor([51, 102, 153], dtype=torch.uint8)[labels.clamp_min(0)][:, None, None, None].expand(-1, 3, 8, 8)
    data = ImageData("few", *[TensorImages(grey, labels.clamp_min(0), ("a", "b", "c"))] * 2, 8)
    with Image.open(draw_clusters(labels, data, tmp_path / "clusters.png")) as image:
        pixels = torch.from_numpy(numpy.array(image.convert("RGB")))
    share = [(pixels == level).all(2).float().mean().item() for level in (51, 102, 153)]
    assert share[0] > 2 * share[2] > 0.01 and share[2] > share[1] > 0.01
    assert draw_clusters(torch.full((38,), -1), data, tmp_path / "none.png") is None


def test_the_options_of_the_methods(capsys):
    from fastssl.__main__ import main

    for method, wanted in {
        "barlow_twins": ["--lambda-param", "--statistics", "statistics of the loss are over the rows of all of them"],
        "vicreg": ["--mu-param", "--nu-param", "--statistics"],
        "lejepa": ["--num-views", "--slices"],
        "deepcluster": ["--num-clusters", "--components"],
        "ijepa": ["--num-targets", "--predictor-dim", "--final-momentum"],
    }.items():
        with pytest.raises(SystemExit):
            main(["train", method, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert all(option in said for option in wanted) and f"runs/{method}" in said
    for line, words in (
        ("ijepa --predictor-dim 6", "--predictor-dim 6"),
        (
            "ijepa --backbone vit_tiny_patch16_224 --patch-size 8",
            "--patch-size: only --backbone vit uses it, and --backbone is vit_",
        ),
        ("vicreg --negatives local", "--negatives"),
        ("vicreg --epochs 3 --warmup-epochs 3.5", "--warmup-epochs 3.5: must be at most the 3 of --epochs"),
        ("lejepa --lambda-param 0 --slices 64", "--slices: a run with --lambda-param 0 does not use it"),
        (
            "deepcluster --data digits --num-clusters 99999",
            "--num-clusters 99999: must be at most 1438, the number of training images",
        ),
    ):
        assert main(["train", *line.split()]) == 2 and words in capsys.readouterr().err
