"""``fastssl runs``: which runs lie below a folder, what became of them, and what they reached."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from fastssl import _ending
from fastssl.__main__ import main
from fastssl._ending import UsageError
from tests.support.training import needs_train
from tests.train.test_dry_run import HOLD

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def listed(folder, capsys, *options: str) -> dict[str, dict]:
    """The list by the names of the folders, in its order."""
    assert main(["runs", str(folder), "--json", *options]) == 0
    return {os.path.relpath(run["run"], folder): run for run in json.loads(capsys.readouterr().out)}


def copied(run, folder, **history: dict) -> None:
    """A copy of a run whose settings or last epoch are others."""
    folder.mkdir(parents=True)
    shutil.copy(run / ".lock", folder)
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    own = checkpoint["fastssl"]
    own["config"] |= history.pop("config", {})
    own["history"][-1] |= history
    torch.save(checkpoint, folder / "last.ckpt")


@pytest.fixture
def many(grey_run, tmp_path):
    """Runs of which one is finished, and others were stopped, failed, are damaged, or have no checkpoint yet."""
    folder = tmp_path / "runs"
    copied(grey_run, folder / "done", knn=0.75)
    copied(grey_run, folder / "group" / "better", knn=0.875)
    copied(grey_run, folder / "stopped", config={"epochs": 30})
    copied(grey_run, folder / "failed", config={"epochs": 30})
    (folder / "failed" / "error.txt").write_text("the loss became nan")
    copied(grey_run, folder / "done" / "earlier-1")
    for name in ("damaged", "begun"):
        (folder / name).mkdir()
        shutil.copy(grey_run / ".lock", folder / name)
    (folder / "damaged" / "last.ckpt").write_bytes((grey_run / "last.ckpt").read_bytes()[:5000])
    shutil.copy(grey_run / "config.yaml", folder / "begun")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("no run")
    for age, name in enumerate(("begun", "group/better", "done", "stopped", "failed", "damaged")):
        for path in (folder / name).iterdir():
            if path.is_file() and path.name != "error.txt":
                os.utime(path, (time.time() - 4000 * age,) * 2)
    return folder


def test_the_untrained_encoders_scores_are_not_the_runs(grey_run, tmp_path, capsys):
    copied(grey_run, tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    untrained, *trained = checkpoint["fastssl"]["history"]
    assert untrained["epoch"] == 0 and "knn" in untrained
    for row in trained:
        row.pop("knn", None)
    torch.save(checkpoint, tmp_path / "run" / "last.ckpt")
    assert listed(tmp_path, capsys)["run"]["scores"] == {}


def test_what_became_of_each_run(many, grey_run, capsys):
    found = listed(many, capsys)
    states = {name: (run["state"], run["epochs"], run["of"]) for name, run in found.items()}
    assert states == {
        "begun": ("stopped", 0, 2),
        "group/better": ("finished", 2, 2),
        "done": ("finished", 2, 2),
        "stopped": ("stopped", 2, 30),
        "failed": ("failed", 2, 30),
        "damaged": ("damaged", 0, None),
    }
    assert list(found) == list(states)  # the newest first
    done = found["done"]
    assert done["scores"] == {"knn": 0.75} and done["method"] == "simclr" and done["encoder"] == "conv"
    assert done["data"].startswith("folder:") and done["seconds"] > 0
    assert done["bytes"] == sum(path.stat().st_size for path in (many / "done").rglob("*") if path.is_file())
    assert found["begun"]["method"] == "simclr" and found["damaged"]["method"] == ""
    assert list(listed(many, capsys, "--sort", "score"))[:4] == ["failed", "stopped", "group/better", "done"]
    assert list(listed(many, capsys, "--sort", "name")) == sorted(found)
    assert next(iter(listed(many, capsys, "--sort", "size"))) == "done"
    assert list(listed(many / "group" / "better", capsys)) == ["."]


def test_the_scores_are_those_of_the_evaluation_at_the_end(many, grey_run, capsys):
    shutil.copy(grey_run / "scores.json", many / "done")
    done, better = (listed(many, capsys)[name] for name in ("done", "group/better"))
    assert set(done["scores"]) == {"knn", "probe"} and done["scores"]["knn"] == 1.0 and better["scores"] == {"knn": 0.875}
    scores = json.loads((many / "done" / "scores.json").read_text())
    own = next(table for table in scores["tables"] if table["task"] == "evaluation" and table["checkpoint"] == "last.ckpt")
    for other in ({"epoch": 1}, {"checkpoint": "fine_tuned.ckpt"}, {"data": "digits"}):
        (many / "done" / "scores.json").write_text(json.dumps({"tables": [own | other]}))
        assert listed(many, capsys)["done"]["scores"] == {"knn": 0.75}, other


def test_the_table(many, capsys, monkeypatch):
    from fastssl.train import runs

    assert main(["runs", str(many)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "method", "encoder", "data", "epochs", "state", "scores", "size", "age"]
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[1:]}
    assert rows["done"].startswith("done simclr conv folder:/") and " 2 finished kNN 0.750 " in rows["done"]
    assert rows["done"].endswith(" MB 2 h") and " 2 of 30 failed " in rows["failed"] and " - damaged - " in rows["damaged"]
    monkeypatch.setattr(runs.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["runs", str(many)]) == 0
    narrow = capsys.readouterr().out.splitlines()
    assert max(map(len, narrow)) == 100 and "~" in narrow[1]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["runs", str(many)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert (
        "size" not in head
        and head.endswith("age")
        and max(map(len, rows)) <= 80
        and all(row.endswith((" h", " s")) for row in rows)
    )


def test_a_running_one_comes_first_and_is_not_disturbed(many, capsys):
    with subprocess.Popen([sys.executable, "-c", HOLD, many / "failed"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        found = listed(many, capsys)
        assert next(iter(found)) == "failed" and found["failed"]["state"] == "running"
        other.stdin.close()
    assert other.returncode == 0


def test_what_is_no_file_or_has_odd_numbers_holds_no_list_up(grey_run, tmp_path, capsys):
    from fastssl.train.rundir import holder

    odd = tmp_path / os.fsdecode(b"no\xffutf8")
    copied(grey_run, odd, knn=0.5)
    for name in ("pipe", "epochs"):
        (tmp_path / name).mkdir()
        shutil.copy(grey_run / ".lock", tmp_path / name)
    os.mkfifo(tmp_path / "pipe" / "last.ckpt")
    os.mkfifo(tmp_path / "pipe" / "config.yaml")
    (tmp_path / "epochs" / "config.yaml").write_text("method: simclr\nepochs: \u00b2\n", encoding="utf-8")
    (tmp_path / "neither").mkdir()
    os.mkfifo(tmp_path / "neither" / ".lock")
    runs = listed(tmp_path, capsys)
    assert {name: run["state"] for name, run in runs.items()} == {odd.name: "finished", "pipe": "damaged", "epochs": "stopped"}
    assert holder(tmp_path / "neither") is None


def test_a_link_in_the_place_of_a_file_of_a_run_is_not_followed(tmp_path, monkeypatch):
    from fastssl.train.checkpoints import write_checkpoint
    from fastssl.train.rundir import claimed

    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".lock").symlink_to(mine)
    with pytest.raises(UsageError, match="cannot be written"), claimed(tmp_path):
        pass
    for name in ("last.ckpt", "error.txt"):
        (tmp_path / name).symlink_to(mine)
    write_checkpoint({"a": torch.ones(3)}, tmp_path / "last.ckpt")
    monkeypatch.setattr(_ending.PLACE, "folder", tmp_path)
    assert _ending.traceback_kept(ValueError("no")) == tmp_path / "error.txt"
    assert mine.read_text() == "mine" and torch.load(tmp_path / "last.ckpt", weights_only=True)["a"].sum() == 3
    assert "ValueError: no" in (tmp_path / "error.txt").read_text() and not (tmp_path / "error.txt").is_symlink()


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_logs_are_not_written_through_a_link(name, tmp_path):
    from fastssl.train.rundir import next_version, refuse_links, set_earlier_run_aside

    (tmp_path / "run" / "csv" / "version_7").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / "version_x").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / "version_11").symlink_to(tmp_path / "nowhere")
    assert next_version(tmp_path / "run") == 12 and next_version(tmp_path) == 0
    refuse_links(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=f"{name} there is a link, and must be a folder"):
        refuse_links(tmp_path / "run")
    set_earlier_run_aside(tmp_path / "run")
    assert (tmp_path / "run" / "earlier-1" / name).is_symlink()
    refuse_links(tmp_path / "run")


def test_nothing_to_list(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0 and capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert main(["runs", str(tmp_path), "--json"]) == 0 and json.loads(capsys.readouterr().out) == []
    assert main(["runs", str(tmp_path / "none")]) == 2 and "there is no such folder" in capsys.readouterr().err
    assert main(["runs", "--sort", "nmae"]) == 2 and "did you mean name?" in capsys.readouterr().err


def test_what_ends_a_training_is_kept(grey_run, tmp_path, monkeypatch, capsys):
    """Also an error that is told in one line, so that the list can say that the run failed."""
    from fastssl.train import loop

    monkeypatch.setattr(loop.MethodModule, "training_step", lambda self, arguments, index: self.refuse())
    monkeypatch.setattr(loop.MethodModule, "refuse", refuse, raising=False)
    assert main(["train", "--config", str(grey_run / "config.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "the loss became nan" in capsys.readouterr().err and "Traceback" in (tmp_path / "run" / "error.txt").read_text()
    assert listed(tmp_path, capsys)["run"]["state"] == "failed"


def test_an_error_of_eval_is_not_the_trainings(grey_run, tmp_path, monkeypatch, capsys):
    from fastssl.train import cli

    copied(grey_run, tmp_path / "run", config={"epochs": 30})
    monkeypatch.setattr(cli, "evaluate", lambda *_, **__: [].pop())
    assert main(["eval", str(tmp_path / "run"), "--data", f"folder:{grey_run.parent / 'images'}"]) == 1
    kept = tmp_path / "run" / "error-eval.txt"
    assert capsys.readouterr().err.endswith(f"unexpected IndexError: pop from empty list; the traceback is in {kept}\n")
    assert "Traceback" in kept.read_text()
    assert listed(tmp_path, capsys)["run"]["state"] == "stopped"


def test_an_error_in_the_first_step_after_a_resume_is_not_the_checkpoints(grey_run, tmp_path, monkeypatch, capsys):
    from fastssl.train import loop

    copied(grey_run, tmp_path / "run")
    monkeypatch.setattr(loop.MethodModule, "training_step", lambda self, arguments, index: [].pop())
    options = ["--data", f"folder:{grey_run.parent / 'images'}", "--accelerator", "cpu", "--workers", "0", "--epochs", "3"]
    assert main(["train", "simclr", *options, "--out", str(tmp_path / "run"), "--resume"]) == 1
    assert "error: unexpected IndexError: pop from empty list; the traceback is in" in capsys.readouterr().err
    assert "pop from empty list" in (tmp_path / "run" / "error.txt").read_text()


def refuse(self) -> None:
    from fastssl.train import UsageError

    raise UsageError("--lr: the loss became nan")


def test_a_wrong_name_of_a_run_is_told_with_the_one_that_was_meant(grey_run, tmp_path, capsys):
    (tmp_path / "leaves").mkdir()
    os.link(grey_run / "last.ckpt", tmp_path / "leaves" / "last.ckpt")
    (tmp_path / "leafs").mkdir()  # no run
    assert main(["eval", str(tmp_path / "leavs")]) == 2
    said = f"RUN {tmp_path / 'leavs'}: no such file or directory; did you mean {tmp_path / 'leaves'}?\n"
    assert capsys.readouterr().err.endswith(said)
    assert main(["export", str(tmp_path / "birds"), "--to", "torch"]) == 2
    assert capsys.readouterr().err.endswith("no such file or directory\n")


def test_a_file_that_is_no_checkpoint_is_named_once(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    file.write_text("epochs: 2\n", encoding="utf-8")
    for words in (["eval"], ["report"], ["export", "--to", "torch"]):
        assert main([*words, str(file)]) == 2
        assert capsys.readouterr().err.endswith(f"error: RUN {file} cannot be read: it is no checkpoint, or damaged\n")
