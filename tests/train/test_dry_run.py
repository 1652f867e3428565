"""``fastssl train --dry-run``: says what would run and about how long, and writes nothing."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastssl.__main__ import main
from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
HOLD = """
import sys, time
from pathlib import Path
from fastssl.train.rundir import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_would_run_is_said_and_nothing_is_written(grey_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = files_of(grey_run.parent)
    assert main(["train", "--config", str(grey_run / "config.yaml"), "--dry-run", "--epochs", "40"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: " ".join(line.split()) for line in said.splitlines()}
    assert said.splitlines()[1] == "dry run: nothing is written" and "24 training and 6 test images of 16 x 16" in said
    assert lines["steps"] == "steps 3 steps in each of 40 epochs, 120 in all" and lines["folder"] == "folder runs/simclr"
    assert lines["method"].startswith("method simclr, 0.5 M parameters, 0.4 M of them in the encoder conv")
    assert lines["timed"].startswith("timed 0.") and "a step on cpu (median of 2)" in lines["timed"]
    assert lines["time"].startswith("time about ") and "GiB so far" in lines["memory"]
    assert not list(tmp_path.iterdir()) and files_of(grey_run.parent) == images


def test_what_would_be_resumed_or_set_aside(grey_run, capsys):
    before = files_of(grey_run.parent)
    options = ["train", "--config", str(grey_run / "config.yaml"), "--out", str(grey_run), "--dry-run"]
    assert main([*options, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "resume: 2 of 2 epochs were finished" in said and "only evaluating" in said and "timed" not in said
    assert main([*options, "--batch-size", "24"]) == 0
    said = capsys.readouterr().out
    assert f"{grey_run}, where a run would be set aside" in said and "1 step in each of 2 epochs" in said
    assert files_of(grey_run.parent) == before


def test_a_folder_that_could_not_be_written_is_refused(grey_run, tmp_path, monkeypatch, capsys):
    options = ["train", "--config", str(grey_run / "config.yaml"), "--dry-run", "--out", str(tmp_path / "run")]
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert main(options) == 2
        said = capsys.readouterr().err
        assert f"--out {tmp_path / 'run'}: process {other.pid} on " in said and "is training there" in said
        other.stdin.close()
    from fastssl.train import rehearsal

    monkeypatch.setattr(rehearsal.os, "access", lambda path, mode: path != tmp_path / "run")
    assert main(options) == 2 and "cannot be written: Permission denied" in capsys.readouterr().err


def test_the_estimate_counts_steps_scores_and_rounds():
    from fastssl.train.rehearsal import Rehearsal

    def seconds(each_round, done):
        config, trainer = SimpleNamespace(epochs=7, knn_every=3), SimpleNamespace(num_training_batches=10)
        marks = [0.0, 5.0, 15.0, 16.0, 18.0, 19.0]  # 5 s before the first step, which takes 10 s; then 1, 2, 1 s
        recipe = SimpleNamespace(each_round=each_round)
        module = SimpleNamespace(config=config, trainer=trainer, marks=marks, scoring=100.0, recipe=recipe)
        module.step_seconds = lambda: Rehearsal.step_seconds(module)
        return Rehearsal.seconds(module, done)

    assert seconds(None, 0) == 70 * 1.0 + 4 * 100 + 5  # untrained, and after epochs 3, 6 and 7
    assert seconds(lambda module, epoch: None, 0) == 70 + 400 + 7 * 5
    assert seconds(None, 4) == 30 + 2 * 100 + 5


def test_what_an_epoch_costs(monkeypatch):
    from fastssl.train import progress

    assert progress.speed(1200, [0.0, 3.0, 4.5], "images") == "800 images/s"
    assert progress.speed(90, [None, 10.0, 50.0], "clips") == "2.2 clips/s"
    assert progress.speed(10**6, [0.0, 10.0], "words") == "100,000 words/s"
    assert [progress.speed(9, spent, "images") for spent in ([], [0.0], [0.0, None], [1.0, 1.0])] == ["", "", "", ""]
    monkeypatch.setattr(progress.sys, "platform", "linux")
    monkeypatch.setattr(progress.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 << 19))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 << 30)
    assert progress.peak_memory() == progress.peak_memory(torch.device("cpu")) == "1.5 GiB"
    assert progress.peak_memory(torch.device("cuda", 0)) == "1.5 GiB, GPU 5.0 GiB"
    monkeypatch.setattr(progress, "resource", None)
    assert progress.peak_memory() == ""


def test_the_line_of_an_epoch_tells_the_time_left_where_there_is_no_bar(monkeypatch):
    from fastssl.train import progress

    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    steps = progress.Steps(3, 4, 4)
    assert steps.rest() == ""  # no pace is known
    for _ in range(4):
        clock.now += 20.0
        steps.step(torch.tensor(1.5))
    assert steps.rest() == "about 1 min 20 s left"
    monkeypatch.setattr(steps, "bar", object())
    assert steps.rest() == ""
