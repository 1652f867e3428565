"""A part of ``python -m tests.reliability checkpoints`` each day, and what else nobody may do by a checkpoint."""

import json
import os
import shutil

import pytest
import torch

from tests.reliability.apart import FAULT, REFUSED, SERVED, apart, command
from tests.reliability.checkpoints import command_one, files, read_one
from tests.reliability.hostile import exchanged, saved
from tests.support.rotation import of_today
from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize("kind, days", of_today([("cut", 20), ("hostile", 2), ("flipped", 1), ("resealed", 1)], 2))
def test_a_damaged_or_hostile_file_is_refused_or_read_as_it_was(kind, days, grey_run, tmp_path):
    items = of_today(files(grey_run, 20, tmp_path / "code was run")[kind], days)
    said = apart(read_one, items)
    assert items and not [f"{name}: {words}" for (name, *_), words in zip(items, said, strict=True) if words.startswith(FAULT)]
    assert not (tmp_path / "code was run").exists()
    if kind in ("cut", "hostile"):
        assert all(words.startswith(REFUSED) for words in said), [name for (name, *_), words in zip(items, said, strict=True)]


def test_a_fault_is_counted():
    def work(item):
        if item == "dies":
            torch.empty(0).set_(torch.UntypedStorage(0), 0, (1 << 40,), (0,))
            raise SystemExit(3)
        return SERVED

    said = apart(work, ["a", "dies", "b"])
    assert said[0] == said[2] == SERVED and said[1].startswith(FAULT)


ALTERED = [
    (("fastssl", "history", 1, "loss"), "x", "history of epochs is damaged"),
    (("fastssl", "history", 1, "epoch"), 7, "history of epochs is damaged"),
    (("fastssl", "history", 1, "loss"), 10**400, "a number that no run reaches"),
    (("fastssl", "image_size"), 1 << 40, "image_size must be at most"),
    (("fastssl", "data"), [1], "what it notes of its data is damaged"),
    (("fastssl", "data", "train", "count"), {}, "what it notes of its data is damaged"),
    (("fastssl", "cut_short"), {"losses": [1], "generators": {}}, "its interrupted epoch is damaged"),
    (("optimizer_states", 0, "state", 2, "exp_avg"), -1, "cannot be restored"),
    (("lr_schedulers", 0, "last_epoch"), {}, "cannot be restored"),
]


@pytest.mark.parametrize("path, new, reason", of_today(ALTERED, 3))
def test_a_value_of_another_kind_is_a_line(path, new, reason, grey_run):
    content = saved(exchanged(torch.load(grey_run / "last.ckpt", weights_only=True), path, new))
    data = ["--data", f"folder:{grey_run.parent / 'images'}", "--accelerator", "cpu", "--workers", "0", "--map", "none"]
    said = command_one(("", content, ["train", "simclr", *data, "--epochs", "3", "--resume", "--out"]))
    assert said.startswith(REFUSED) and reason in said


def test_a_checkpoint_names_no_file_that_goes(grey_run, tmp_path):
    """Lightning removes the best checkpoint that a checkpoint names, with all that lies below it, when a new one is there."""
    from fastssl.train.loop import AtomicCheckpointIO

    kept = tmp_path / "kept"
    kept.mkdir()
    AtomicCheckpointIO().remove_checkpoint(kept)
    assert kept.exists()


def odd_files(run) -> dict[str, str | bytes | None]:
    """Names of files in a run's folder, with what no run writes there; None is a pipe that nobody writes to."""
    deep, rows = "[" * 100_000, "epoch,loss,loss_step,step\n"
    numbers = "1e400,nan,inf,1\n1,1,1,1e308\n0,1,1e308,0\n0,1,1,9" + "9" * 5000 + "\n"
    table = json.loads((run / "scores.json").read_text())["tables"][0]

    def scores(**changes) -> str:
        return json.dumps({"tables": [table | changes]})

    return {
        "scores.json deep": deep,
        "scores.json infinite": scores(epoch=1e400),
        "scores.json long": scores(epoch=7).replace('"epoch": 7', '"epoch": ' + 5000 * "9"),
        "scores.json form": scores(forms=["{0.__class__}"] * len(table["forms"])),
        "scores.json columns": scores(columns=[], rows=[[label, []] for label, _ in table["rows"]]),
        "scores.json many": json.dumps({"tables": [table | {"data": str(i)} for i in range(20_000)]}),
        "scores.json control": scores(heading="\x1b[2J\n\ud800"),
        "scores.json pipe": None,
        "config.yaml deep": deep,
        "config.yaml tag": "a: !!python/object/apply:os.system ['touch code']",
        "csv/version_0/metrics.csv numbers": rows + numbers,
        "csv/version_0/metrics.csv long": (rows + "1,2,3,4\n" * (5 << 20)).encode(),
        "csv/version_0/metrics.csv pipe": None,
        "map.png pipe": None,
        "map.png no picture": b"\x89PNG\r\n\x1a\n" + bytes(8),
        "report.html pipe": None,
    }


def test_odd_files_beside_a_checkpoint_hold_no_report_up(grey_run, tmp_path):
    """The page is made without them, and so is the list, in 1 GiB of memory."""

    def work(name):
        folder = tmp_path / name.replace("/", " ")
        shutil.copytree(grey_run, folder / "run")
        path, content = folder / "run" / name.split()[0], odd_files(grey_run)[name]
        path.unlink(missing_ok=True)
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        ended = [command(words) for words in (["report", str(folder / "run")], ["runs", str(folder)])]
        wrong = [said for code, _, said in ended if code or any("warning: " not in line for line in said.splitlines())]
        return f"{FAULT}: {wrong}" if wrong or not (folder / "run" / "report.html").is_file() else SERVED

    names = of_today(odd_files(grey_run), 3)
    assert not [f"{name}: {words}" for name, words in zip(names, apart(work, names), strict=True) if words != SERVED]


def test_a_folder_in_the_place_of_a_file_is_a_line(grey_run, tmp_path):
    shutil.copytree(grey_run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    code, _, said = command(["report", str(tmp_path / "run")])
    assert code == 1 and said.startswith("fastssl report: error: ") and f"{tmp_path}/run/report.html is a directory" in said
