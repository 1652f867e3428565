"""A training that is stopped, by a signal at any place or by kill -9, and resumed; two runs into one folder."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.support.training import needs_train, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
ROOT = Path(__file__).resolve().parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grey")
    write_grey_classes(folder)
    return folder


def options(images: Path, name: str, out: Path, *more: str) -> list[str]:
    where = ["--data", f"folder:{images}", "--image-size", "16", "--batch-size", "8", "--accelerator", "cpu", "--workers", "0"]
    return ["train", name, *where, "--map", "none", "--epochs", "2", "--knn-every", "1", "--out", str(out), *more]


def kill_self(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # the handler runs here at the latest


def same_run(ours: Path, theirs: Path) -> None:
    a, b = (torch.load(run / "last.ckpt", weights_only=True) for run in (ours, theirs))
    assert a["fastssl"] == b["fastssl"] and a["lr_schedulers"] == b["lr_schedulers"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][key], value) for key, value in b["state_dict"].items())


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    from fastssl.__main__ import main

    out = tmp_path_factory.mktemp("whole")
    assert main(options(images, "moco", out)) == 0
    return out


# where the signal comes: steps are counted over both epochs of 3 -> what the resumed run says of itself
STEPS = {
    1: "0 of 2 epochs and 1 of the next one's",
    5: "1 of 2 epochs and 2 of the next one's",
    3: "1 of 2 epochs were",
    6: "only evaluating",
}


@pytest.mark.parametrize(
    "step, signum, workers",
    [(1, signal.SIGHUP, "0"), (3, signal.SIGTERM, "1"), (5, signal.SIGINT, "1"), (6, signal.SIGTERM, "0")],
)
def test_a_signal_in_a_step_saves_the_run(step, signum, workers, images, whole, tmp_path, capsys, monkeypatch):
    """The resumed run is the one that was not stopped, bit for bit; with worker processes too, which fetch batches in advance."""
    from fastssl.__main__ import main
    from fastssl.train import loop

    class Steps(loop.Steps):
        def step(self, loss):
            super().step(loss)
            if self.done == step:
                kill_self(signum)

    monkeypatch.setattr(loop, "Steps", Steps)
    before = [signal.getsignal(each) for each in CODES]
    out = tmp_path / "run"
    assert main([*options(images, "moco", out), "--workers", workers]) == CODES[signum]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "stopped by" in said and "--resume goes on" in said and str(out / "last.ckpt") in said
    assert [signal.getsignal(each) for each in CODES] == before
    monkeypatch.undo()
    assert main([*options(images, "moco", out, "--resume"), "--workers", workers]) == 0
    assert STEPS[step] in capsys.readouterr().out
    if step < 6:
        same_run(out, whole)


@pytest.mark.parametrize("where", ["untrained", "epoch 1", "evaluation"])
def test_a_signal_between_the_steps_ends_at_once(where, images, whole, tmp_path, capsys, monkeypatch):
    """In the scores of the untrained encoder nothing is saved yet; in those of an epoch it is saved, and scored on resume."""
    import dataclasses

    from fastssl.__main__ import main
    from fastssl.train.recipes import RECIPES

    calls = []

    def monitor(*arguments, **how):
        calls.append(how)
        if len(calls) == {"untrained": 1, "epoch 1": 2, "evaluation": 4}[where]:
            kill_self(signal.SIGTERM)
        return RECIPES["moco_v3"].monitor(*arguments, **how)

    monkeypatch.setitem(RECIPES, "moco", dataclasses.replace(RECIPES["moco"], monitor=monitor))
    out = tmp_path / "run"
    assert main(options(images, "moco", out)) == 143
    said = capsys.readouterr()
    assert ("nothing was saved yet" in said.err) == (where == "untrained") and said.err.count("\n") == 1
    assert not list(out.glob(".*.partial"))
    assert main(options(images, "moco", out, "--resume")) == 0
    said = capsys.readouterr().out
    told = {"untrained": "starting from the beginning", "epoch 1": "1 of 2 epochs", "evaluation": "only evaluating"}
    assert told[where] in said and "weighted kNN" in said
    same_run(out, whole)
