"""Checkpoints that are damaged, altered, or of other data: a line that names the file and the reason, and nothing written over."""

import io
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.training import needs_train, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def command(images: Path, out: Path, *more: str, name: str = "instdisc") -> list[str]:
    where = ["--data", f"folder:{images}", "--image-size", "16", "--batch-size", "8", "--accelerator", "cpu", "--workers", "0"]
    return ["train", name, *where, "--map", "none", "--knn-every", "9", "--out", str(out), *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of images and a run of two epochs on them."""
    from fastssl.__main__ import main

    place = tmp_path_factory.mktemp("trained")
    write_grey_classes(place / "images")
    assert main(command(place / "images", place / "run", "--epochs", "2")) == 0
    return place / "images", place / "run"


@pytest.fixture
def run(trained, tmp_path) -> tuple[Path, Path]:
    """The same, to be spoiled."""
    for source, name in zip(trained, ("images", "run"), strict=True):
        shutil.copytree(source, tmp_path / name)
    return tmp_path / "images", tmp_path / "run"


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".ckpt"}


def altered(change):
    def alter(path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return alter


def with_nan(checkpoint: dict) -> None:
    checkpoint["state_dict"]["method.backbone.0.weight"][3, 1, 0, 2] = torch.nan


def with_nan_momentum(checkpoint: dict) -> None:
    checkpoint["optimizer_states"][0]["state"][2]["exp_avg"][1] = -torch.inf


def flipped(what: str):
    """Changes one bit, as a disk or a copy may: torch itself reads the file as if it were whole."""

    def flip(path: Path) -> None:
        weight = torch.load(path, weights_only=True)["state_dict"]["method.backbone.0.weight"]
        content = bytearray(path.read_bytes())
        at = content.find(weight.numpy().tobytes() if what == "weights" else b"knn_every")
        assert at > 0
        content[at + 2] ^= 0x10
        path.write_bytes(content)

    return flip


def other_shape(checkpoint: dict) -> None:
    checkpoint["state_dict"]["method.backbone.3.weight"] = torch.zeros(64, 31, 3, 3)


DAMAGES = {
    "cut short": (lambda path: os.truncate(path, path.stat().st_size // 2), "cut short or damaged"),
    "empty": (lambda path: os.truncate(path, 0), "last.ckpt cannot be read: the file is empty\n"),
    "text": (lambda path: path.write_text("weights"), "no checkpoint"),
    "other text": (lambda path: path.write_text("hello world\n"), "last.ckpt cannot be read: it is no checkpoint, or damaged\n"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Path("x"), 4)), "it is no checkpoint, or damaged"),
    "a bit of a weight": (flipped("weights"), "cut short or damaged (the checksum of archive/data/"),
    "a bit of the settings": (flipped("settings"), "cut short or damaged (the checksum of archive/data.pkl is wrong)"),
    "an object": (lambda path: torch.save({"fastssl": Path("x")}, path), "more than tensors"),
    "plain weights": (altered(lambda c: c.pop("fastssl")), "not written by fastssl train"),
    "no history": (altered(lambda c: c["fastssl"].update(history=[])), "no history"),
    "unknown method": (altered(lambda c: c["fastssl"]["config"].update(method="simclr9")), "not known here"),
    "odd setting": (altered(lambda c: c["fastssl"]["config"].update(batch_size="eight")), "batch_size is 'eight'"),
    "negative setting": (
        altered(lambda c: c["fastssl"]["config"].update(image_size=-32)),
        "image_size must be at least 8, got -32",
    ),
    "NaN setting": (altered(lambda c: c["fastssl"]["config"].update(lr=math.nan)), "lr must be above 0, got nan"),
    "NaN": (altered(with_nan), "backbone.0.weight has values that are NaN"),
    "NaN of the optimizer": (altered(with_nan_momentum), "optimizer.0.state.2.exp_avg has values that are NaN"),
    "no weights": (altered(lambda c: c.update(state_dict={})), "weights are missing"),
    "a weight gone": (altered(lambda c: c["state_dict"].pop("method.backbone.0.weight")), "backbone.0.weight is missing"),
    "other shape": (altered(other_shape), "backbone.3.weight is (64, 31, 3, 3)"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_kept(damage, run, capsys):
    from fastssl.__main__ import main

    images, out = run
    spoil, reason = DAMAGES[damage]
    spoil(out / "last.ckpt")
    (out / "previous.ckpt").unlink()
    before = {} if damage == "a folder" else contents(out)
    for arguments in (command(images, out, "--epochs", "3", "--resume"), ["eval", str(out), "--map", "none"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(out / "last.ckpt") in said and reason in said, said
    assert damage == "a folder" or contents(out) == before


def test_wherever_a_checkpoint_is_cut_it_says_so(tmp_path):
    from fastssl.train.checkpoints import Unreadable, read_checkpoint

    whole, cut = io.BytesIO(), tmp_path / "last.ckpt"
    torch.save({"fastssl": {}, "state_dict": {"weight": torch.ones(300)}}, whole)
    for size in range(8, len(whole.getvalue()), 131):
        cut.write_bytes(whole.getvalue()[:size])
        with pytest.raises(Unreadable, match="cannot be read: it is cut short or damaged"):
            read_checkpoint(cut)


def test_a_pickle_is_refused_without_a_warning_of_torch(tmp_path, recwarn):
    from fastssl.train.checkpoints import Unreadable, read_checkpoint

    (tmp_path / "last.ckpt").write_bytes(pickle.dumps({"weight": Path("x")}, 4))
    with pytest.raises(Unreadable, match=r"it is no checkpoint, or damaged$"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not recwarn.list


def test_a_checkpoint_of_the_older_format_is_refused(run):
    """torch before 1.6 wrote it, and no version of fastssl did; torch reads it with room for as much as it claims."""
    from fastssl.train.checkpoints import Unreadable, read_checkpoint

    path = run[1] / "last.ckpt"
    torch.save(read_checkpoint(path), path, _use_new_zipfile_serialization=False)
    with pytest.raises(Unreadable, match=r"it is no checkpoint, or damaged$"):
        read_checkpoint(path)


def test_memory_that_is_refused_is_no_damage(run, monkeypatch):
    from fastssl.train import checkpoints

    def load(path, **how):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")

    monkeypatch.setattr(checkpoints.torch, "load", load)
    with pytest.raises(RuntimeError, match="enforce fail"):
        checkpoints.read_checkpoint(run[1] / "last.ckpt")


def test_weights_that_are_not_finite_are_not_saved(trained, tmp_path, capsys):
    """The loss of an epoch of one step is that of the weights before it: it does not show what the step made of them."""
    from fastssl.__main__ import main

    more = ("--batch-size", "24", "--weight-decay", "1e38", "--lr", "1e3", "--warmup-epochs", "0", "--epochs", "2")
    assert main(command(trained[0], tmp_path / "run", *more)) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "--lr: " in said.err and "a smaller --weight-decay" in said.err
    assert " has values that are NaN or infinite in epoch 1, which is not saved" in said.err
    assert not contents(tmp_path / "run") and "epoch   1/2" in said.out


def test_the_checkpoint_before_is_named_but_not_taken(run, capsys):
    """``last.ckpt`` would be moved onto it at the next save. Evaluation, which saves nothing, takes it and says so."""
    from fastssl.__main__ import main

    images, out = run
    os.truncate(out / "last.ckpt", 3000)
    before = contents(out)
    assert main(command(images, out, "--epochs", "3", "--resume")) == 2
    said = capsys.readouterr().err
    assert "last.ckpt cannot be read" in said and "previous.ckpt beside it is whole, with 1 finished epochs" in said
    assert contents(out) == before and main(["eval", str(out), "--map", "none"]) == 0
    said = capsys.readouterr()
    assert "warning" in said.err and "last.ckpt cannot be read" in said.err and str(out / "previous.ckpt") in said.out
    (out / "last.ckpt").unlink()  # between two renames of a killed process: that is no damage
    assert main(command(images, out, "--resume", "--epochs", "2")) == 0
    assert "1 of 2 epochs were finished" in capsys.readouterr().out
    os.truncate(out / "previous.ckpt", 3000)
    os.truncate(out / "last.ckpt", 300)
    assert main(["eval", str(out)]) == 2 and capsys.readouterr().err.count("cannot be read") == 2


def test_an_error_of_the_disk_is_not_swallowed(run, capsys, monkeypatch):
    from fastssl.__main__ import main
    from fastssl.train import checkpoints

    def load(path, **how):
        raise OSError(5, os.strerror(5), str(path))

    images, out = run
    before = contents(out)
    monkeypatch.setattr(checkpoints.torch, "load", load)
    assert main(command(images, out, "--resume", "--epochs", "3")) == 2
    assert f"{out / 'last.ckpt'} cannot be read: {os.strerror(5)}" in capsys.readouterr().err and contents(out) == before


def test_no_checkpoint_starts_over(run, capsys):
    from fastssl.__main__ import main

    images, out = run
    for path in out.glob("*.ckpt"):
        path.unlink()
    assert main(command(images, out, "--resume", "--epochs", "1", "--batch-size", "10")) == 0
    said = capsys.readouterr()
    assert "no checkpoint" in said.out and "4 of 24 images do not fill a batch of 10 and are left out" in said.err


def test_other_data_than_the_run_began_with(run, capsys):
    """instdisc's bank has a row for each image: one file more, another name, a class that is gone are refused."""
    from fastssl.__main__ import main

    images, out = run
    resume, before = command(images, out, "--resume", "--epochs", "3"), contents(out)
    shutil.copy(images / "dark" / "0.png", images / "dark" / "new.png")
    assert main(resume) == 2 and "24 images then, 25 now" in capsys.readouterr().err
    (images / "dark" / "new.png").unlink()
    (images / "dark" / "0.png").rename(images / "dark" / "00.png")
    assert main(resume) == 2 and "as many, but other ones" in capsys.readouterr().err
    altered(lambda c: c["fastssl"]["config"].update(data=f"folder:{images}"))(out / "last.ckpt")
    before = contents(out)
    shutil.rmtree(images / "dark")
    assert main(resume) == 2 and "classes gone: dark" in capsys.readouterr().err
    assert main(["eval", str(out), "--map", "none"]) == 0
    said = capsys.readouterr()
    assert "the training data changed since the run (classes gone: dark; 24 images then, 12 now)" in said.err
    assert said.err.count("scores of then are left out") == 1 and "untrained" not in said.out
    assert contents(out) == before


def test_a_run_of_another_method_or_of_an_earlier_version(run, capsys):
    from fastssl.__main__ import main
    from fastssl.train.checkpoints import config_of, find_checkpoint

    images, out = run
    assert main(command(images, out, "--resume", name="simclr")) == 2
    said = capsys.readouterr().err
    assert f"fastssl train instdisc --out {out} --resume" in said and "--method" not in said
    path, checkpoint = find_checkpoint(out)
    del checkpoint["fastssl"]["config"]["patch_size"], checkpoint["fastssl"]["data"]
    assert config_of(checkpoint).patch_size is None
    vit = {"fastssl": {"config": {**checkpoint["fastssl"]["config"], "backbone": "vit", "image_size": 128}}}
    assert config_of(vit).patch_size == 4  # what the built-in transformer had at any size
    checkpoint["fastssl"]["config"]["data"] = "folder:/elsewhere"
    torch.save(checkpoint, path)
    assert main(command(images, out, "--resume", "--epochs", "3")) == 2 and "folder:/elsewhere" in capsys.readouterr().err
    checkpoint["fastssl"]["config"]["data"] = f"folder:{images}"
    torch.save(checkpoint, path)
    assert main(command(images, out, "--resume", "--epochs", "2")) == 0


def test_a_run_of_before_methods_had_settings_of_their_own_goes_on(run, capsys):
    """Its checkpoints hold the settings of all methods; those of others are dropped, and one of its own is still looked at."""
    from fastssl.__main__ import main
    from tests.train.test_settings import OF_ALL_METHODS

    images, out = run
    path, resume = out / "last.ckpt", command(images, out, "--resume", "--epochs", "3")
    own = torch.load(path, weights_only=True)["fastssl"]["config"]
    altered(lambda c: c["fastssl"].update(config={**OF_ALL_METHODS, **own, "momentum": "high", "jitter": -0.5}))(path)
    assert main(resume) == 2 and "its setting jitter must be at least 0, got -0.5" in capsys.readouterr().err
    altered(lambda c: c["fastssl"]["config"].update(jitter=0.5))(path)
    assert main(resume) == 0 and "resume: 2 of 3 epochs were finished" in capsys.readouterr().out
    assert torch.load(path, weights_only=True)["fastssl"]["config"] == {**own, "epochs": 3, "data": f"folder:{images}"}


def test_a_checkpoint_that_cannot_be_saved(trained, tmp_path, capsys, monkeypatch):
    """The disk is full at the second epoch: a line, the first epoch stays, no half-written file; and it can be resumed."""
    from fastssl.__main__ import main
    from fastssl.train import checkpoints

    def full(*_):
        raise OSError(28, os.strerror(28))

    class Full:
        saved = 0

    def fsync(number):
        Full.saved += 1
        if Full.saved == 2:
            full()

    images, out = trained[0], tmp_path / "run"
    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    assert main(command(images, out, "--epochs", "2")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(28) in said and str(out) in said
    assert not list(out.glob(".*.partial")) and not (out / "previous.ckpt").exists()
    monkeypatch.setattr(checkpoints.torch, "save", full)
    assert main(command(images, out, "--epochs", "2", "--resume")) == 1 and os.strerror(28) in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command(images, out, "--epochs", "2", "--resume")) == 0
    assert "resume: 1 of 2" in capsys.readouterr().out


def row_of(said: str, label: str) -> list[str]:
    """What the table of scores has in the row of a label: untrained, trained."""
    return next(line for line in said.splitlines() if line.strip().startswith(label))[30:].split()


def test_untrained_scores_stand_only_beside_scores_of_the_same_way_and_data(run, capsys):
    """Other kNN options leave that row without its untrained score, other pixels and other files all rows."""
    from fastssl.__main__ import main

    images, out = run
    altered(lambda c: c["fastssl"]["config"].update(data=f"folder:{images}"))(out / "last.ckpt")
    assert main(["eval", str(out), "--map", "none"]) == 0
    plain = row_of(capsys.readouterr().out, "weighted kNN")
    assert len(plain) == 2 and plain[0] != "-"
    for more in (("--knn-k", "5"), ("--knn-t", "5")):
        assert main(["eval", str(out), "--map", "none", *more]) == 0
        said = capsys.readouterr().out
        assert row_of(said, "weighted kNN")[0] == "-" and len(row_of(said, "weighted kNN")) == 2
        assert row_of(said, "linear probe")[0] != "-" and row_of(said, "effective rank")[0] != "-"
    assert main(["eval", str(out), "--map", "none", "--pixel-range", "0,60000"]) == 0
    said = capsys.readouterr().out
    assert row_of(said, "accuracy on") == ["trained"]
    assert len(row_of(said, "weighted kNN")) == len(row_of(said, "linear probe")) == 1
    shutil.copy(images / "dark" / "4.png", images / "dark" / "zz.png")
    assert main(["eval", str(out), "--map", "none"]) == 0
    said = capsys.readouterr()
    assert row_of(said.out, "accuracy on") == ["trained"] and said.err == (
        f"warning: folder:{images}: the training data changed since the run (24 images then, 25 now); scores of then are left out\n"
    )


def test_eval_says_what_a_run_on_text_does_not_use(run, capsys):
    from fastssl.__main__ import main

    altered(lambda c: c["fastssl"]["config"].update(method="bert"))(run[1] / "last.ckpt")
    assert main(["eval", str(run[1]), "--knn-k", "3"]) == 2
    assert f"error: --knn-k: RUN {run[1]} is one of bert, which does not use it\n" in capsys.readouterr().err


def test_a_resumed_run_remembers_how_the_untrained_knn_voted(run, capsys):
    """Also that of a checkpoint of before, whose settings say it."""
    from fastssl.__main__ import main

    images, out = run
    assert torch.load(out / "last.ckpt", weights_only=True)["fastssl"]["history"][0]["knn_k"] == 20
    for before in (False, True):
        if before:
            altered(lambda c: [c["fastssl"]["history"][0].pop(name) for name in ("knn_k", "knn_t")])(out / "last.ckpt")
        assert main(command(images, out, "--resume", "--epochs", "2", "--knn-k", "3")) == 0
        assert row_of(capsys.readouterr().out, "weighted kNN, k=3")[0] == "-"
    assert main(command(images, out, "--resume", "--epochs", "3", "--knn-k", "3", "--knn-t", "0.1")) == 0
    assert row_of(capsys.readouterr().out, "weighted kNN, k=3")[0] == "-"
    stored = torch.load(out / "last.ckpt", weights_only=True)["fastssl"]
    assert stored["config"]["knn_k"] == 3 and stored["history"][0]["knn_k"] == 20
    assert main(["eval", str(out), "--map", "none"]) == 0
    assert row_of(capsys.readouterr().out, "weighted kNN, k=3")[0] == "-"
    assert main(["eval", str(out), "--map", "none", "--knn-k", "20"]) == 0
    assert row_of(capsys.readouterr().out, "weighted kNN, k=20")[0] != "-"


def test_as_many_voters_are_the_same_vote():
    from fastssl.train.recipes import RECIPES
    from fastssl.train.scores import untrained_scores

    settings = RECIPES["simclr"].settings
    history = [{"epoch": 0, "loss": None, "knn": 0.5, "rank": 3.0, "knn_k": 40, "knn_t": 0.2}, {"epoch": 1, "loss": 1.0}]
    assert untrained_scores(history, settings(knn_k=90, knn_t=0.2), 35)["knn"] == 0.5
    assert "knn" not in untrained_scores(history, settings(knn_k=90, knn_t=0.2), 70)
    assert "knn" not in untrained_scores(history, settings(knn_k=40, knn_t=0.3), 35)
    assert untrained_scores(history, settings(knn_k=40, knn_t=0.3), 35)["rank"] == 3.0
    assert untrained_scores(history[1:], settings(), 35) == untrained_scores([], settings(), 35) == {}
