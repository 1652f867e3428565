"""``fastssl compare``: the table, what is compared with what, the data as JSON, the plots; and the seconds that a run notes."""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.support.training import needs_train, train_until

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def write_run(folder: Path, method: str = "simclr", *, end: float = 0.75, seconds: bool = True, digest: str = "d", **own) -> Path:
    """A checkpoint of 4 epochs whose kNN rises from 0.4 to ``end``, 10 seconds an epoch."""
    from fastssl.train.recipes import RECIPES

    score = next(iter(RECIPES[method].scores))
    rows = [{"epoch": i, "loss": 1.0 if i else None} | ({score: 0.4 + (end - 0.4) * i / 4} if i % 2 == 0 else {}) for i in range(5)]
    rows[0]["probe"] = 0.5
    config = asdict(RECIPES[method].settings(epochs=6, **own))
    of_data = {half: {"count": 9, "classes": ["a", "b"], "digest": digest} for half in ("train", "test")}
    state = {"state_dict": {"method.x": torch.zeros(1)}}
    state["fastssl"] = {"config": config, "history": rows, "image_size": own.get("image_size", 32), "data": of_data}
    if seconds:
        state["seconds"] = {"epochs": [0.0, 10.0, 20.0, 30.0, 40.0], "spent": 40.0}
    folder.mkdir(parents=True)
    torch.save(state, folder / "last.ckpt")
    return folder


def compared(*runs: Path | str, out: Path, json: Path | None = None) -> int:
    from fastssl.__main__ import main

    return main(["compare", *map(str, runs), "--out", str(out), *(["--json", str(json)] if json else [])])


def lines_of(text: str) -> list[list[str]]:
    """The words of the rows of a table."""
    return [line.split() for line in text.splitlines() if "runs/" in line]


def test_the_table_is_sorted_and_written_as_data(tmp_path, capsys):
    runs = write_run(tmp_path / "runs/a"), write_run(tmp_path / "runs/b", "byol", end=0.8, seconds=False)
    out, data = tmp_path / "new" / "plot.png", tmp_path / "new" / "table.json"
    assert compared(*runs, runs[0] / "last.ckpt", tmp_path / "runs/*", out=out, json=data) == 0
    said = capsys.readouterr()
    assert said.err == "" and "weighted kNN, k=20, accuracy on test images; photos, 32 x 32\n" in said.out
    rows = lines_of(said.out)
    assert [row[1:] for row in rows[:2]] == [
        ["byol", "conv", "photos", "4", "of", "6", "-", "0.400", "0.800", "-"],
        ["simclr", "conv", "photos", "4", "of", "6", "40", "s", "0.400", "0.750", "-"],
    ]
    table = json.loads(data.read_text())
    assert [row["last"] for row in table[:2]] == [0.8, 0.75] and out.stat().st_size > 10_000
    assert table[0]["seconds"] is None and table[1]["seconds"] == 40.0 and table[1]["encoder"] == "conv"
    assert [(each["epoch"], each["seconds"]) for each in table[1]["history"]] == [(0, 0.0), (2, 20.0), (4, 40.0)]
    assert table[1]["history"][1]["score"] == pytest.approx(0.575)


def test_json_is_printed_where_no_file_is_named(tmp_path, capsys, monkeypatch):
    """Also where the word behind ``--json`` is a run, or the folder of ``fastssl runs``; a picture is drawn where asked for."""
    from fastssl.__main__ import main

    runs = write_run(tmp_path / "runs/a"), write_run(tmp_path / "runs/b", end=0.8)
    monkeypatch.chdir(tmp_path)
    kept = (runs[0] / "last.ckpt").read_bytes()
    for words in (["runs/a", "runs/b", "--json"], ["--json", "runs/a/last.ckpt", "runs/b"], ["runs/b", "runs/a", "--json", "-"]):
        assert main(["compare", *words]) == 0
        assert [row["last"] for row in json.loads(capsys.readouterr().out)] == [0.8, 0.75]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"} and (runs[0] / "last.ckpt").read_bytes() == kept
    assert main(["compare", "runs/a", "--json", "--out", "a.png"]) == 0 and (tmp_path / "a.png").exists()
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 1 and said.err == "  picture     a.png\n"
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert main(["runs", "--json", "elsewhere"]) == 0 and len(json.loads(capsys.readouterr().out)) == 2
    assert main(["runs", "elsewhere", "--json", "new/list.json"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run ") and said.endswith("  table       new/list.json\n")
    assert len(json.loads((tmp_path / "new/list.json").read_text())) == 2


def test_a_run_given_twice_is_one_row(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", "moco")
    (tmp_path / "runs/notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert compared("runs/*", "runs/a", tmp_path / "runs/b", out=Path("compare.png")) == 0
    assert [row[0] for row in lines_of(capsys.readouterr().out)] == ["runs/a", "runs/b"]


def test_what_differs_in_data_or_score_has_a_table_of_its_own(tmp_path, capsys):
    kinds = {
        "a": {},
        "b": {"method": "byol", "knn_t": 0.2},
        "c": {"digest": "e"},
        "d": {"method": "bert"},
        "e": {"image_size": 64},
        "f": {"method": "mean_teacher"},
    }
    runs = [write_run(tmp_path / "runs" / name, **how) for name, how in kinds.items()]
    assert compared(*runs, out=tmp_path / "x.png") == 0
    tables = capsys.readouterr().out.split("  run ")[1:]
    assert sorted(sorted(row[1] for row in lines_of(table)) for table in tables) == [
        ["bert"],
        ["byol"],
        ["mean_teacher", "simclr"],
        ["simclr"],
        ["simclr"],
    ]
    more = [write_run(tmp_path / "runs" / f"more{i}", digest=f"more{i}") for i in range(3)]
    assert compared(*runs, *more, out=tmp_path / "x.png") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "8 kinds of data and scores, at most 6 fit" in said


def test_methods_of_clips_stand_beside_those_of_the_photographs_that_both_are_scored_on(tmp_path):
    from fastssl.train.compare import by_kind, heading_of, row_of

    still, moving = (torch.load(write_run(tmp_path / name) / "last.ckpt", weights_only=True) for name in "ab")
    moving["fastssl"]["data"] |= {"test": {"digest": "of the clips"}, "scored": {"digest": "d"}}
    moving["fastssl"]["config"]["data"] = "clips"
    ((kind, rows),) = by_kind(row_of(Path(name), checkpoint) for name, checkpoint in (("a", still), ("b", moving))).items()
    assert heading_of(kind, rows) == "weighted kNN, k=20, accuracy on test images; photos, clips, 32 x 32"


def test_scores_of_the_task_are_shown_of_images_without_classes(tmp_path):
    from fastssl.train.compare import row_of

    run = write_run(tmp_path / "run", "rotnet")
    checkpoint = torch.load(run / "last.ckpt")
    for row in checkpoint["fastssl"]["history"]:
        row.pop("knn", None)
    checkpoint["fastssl"]["history"][3]["solved"] = 0.5
    _, found = row_of(run, checkpoint)
    assert found.last is None and found.scores == {"solved": 0.5}


def test_names_tell_runs_of_one_method_apart(tmp_path):
    from fastssl.train.compare import names_of, row_of

    paths = [Path("x/one"), Path("x/two/last.ckpt"), Path("y/one"), Path("z/byol")]
    checkpoint = torch.load(write_run(tmp_path / "r") / "last.ckpt", weights_only=True)
    other = torch.load(write_run(tmp_path / "s", "byol") / "last.ckpt", weights_only=True)
    rows = [row_of(path, other if path.name == "byol" else checkpoint)[1] for path in paths]
    assert names_of(rows) == ["simclr x/one", "simclr two", "simclr y/one", "byol"]


def test_many_runs_are_a_sorted_chart(tmp_path, monkeypatch):
    """Of more runs than lines can be told apart: each has a place, its name there, and two dots."""
    from fastssl.train import compare, pictures

    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    for count in (3, 12):
        found = [write_run(tmp_path / f"{count}/{i}", end=0.5 + 0.01 * i, seconds=i != 5) for i in range(count)]
        kinds = compare.by_kind(compare.row_of(run, torch.load(run / "last.ckpt", weights_only=True)) for run in found)
        compare.draw_compare(kinds, tmp_path / "x.png")
    lines, dots = (figure.axes for figure in drawn)
    assert [len(axis.lines) for axis in lines] == [3, 3] and len(lines[1].texts) == 3
    names = [text.get_text() for text in dots[0].get_yticklabels()]
    assert names == [f"simclr {i}" for i in reversed(range(12))] and len(dots[1].patches) == 11
    first, last = (points.get_offsets()[:, 0].tolist() for points in dots[0].collections)
    assert first == pytest.approx([0.4] * 12) and last == pytest.approx([0.61 - 0.01 * i for i in range(12)])
    for figure in drawn:
        pictures.plt.close(figure)


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    run = write_run(tmp_path / "runs/a")
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/last.ckpt").write_bytes(b"PK\x03\x04 cut short")
    for runs, out, words in (
        ([run, tmp_path / "none"], "x.png", f"RUN {tmp_path / 'none'}: no such file or directory"),
        ([run, tmp_path / "runs/b"], "x.png", "cut short or damaged"),
        ([run, tmp_path / "no*ne"], "x.png", "no such file or directory"),
        ([run], "x.jpeg9", "must end with .png, .pdf or .svg"),
        ([run], ".", "is a directory"),
    ):
        assert compared(*runs, out=tmp_path / out) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and words in said


def test_scores_of_another_vote_and_rows_without_scores(tmp_path):
    from fastssl.train.compare import row_of

    checkpoint = torch.load(write_run(tmp_path / "r") / "last.ckpt", weights_only=True)
    checkpoint["fastssl"]["history"][0] |= {"knn_k": 5, "knn_t": 0.1}
    assert row_of(Path("r"), checkpoint)[1].first is None
    for row in checkpoint["fastssl"]["history"]:
        row.pop("knn", None)
    row = row_of(Path("r"), checkpoint)[1]
    assert (row.first, row.last, row.history) == (None, None, [])


def command(folder: Path, out: Path, *more: str) -> list[str]:
    where = ["--data", f"folder:{folder.parent / 'images'}", "--image-size", "16", "--batch-size", "8", "--workers", "0"]
    return [
        "simclr",
        *where,
        "--accelerator",
        "cpu",
        "--map",
        "none",
        "--epochs",
        "3",
        "--knn-every",
        "3",
        "--out",
        str(out),
        *more,
    ]


def seconds(run: Path) -> dict:
    return torch.load(run / "last.ckpt", weights_only=True)["seconds"]


def test_seconds_are_counted_over_a_resume(grey_run, tmp_path, capsys):
    """They rise with the epochs, go on from the sum of before, and an earlier version's run has none."""
    from fastssl.__main__ import main

    train_until(5, command(grey_run, tmp_path / "run"))
    before = seconds(tmp_path / "run")
    assert len(before["epochs"]) == 2 and before["epochs"][0] == 0 < before["epochs"][1] == before["spent"]
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    state["seconds"] = {"epochs": [0.0, 1000.0], "spent": 1002.5}  # as if the next epoch had begun
    torch.save(state, tmp_path / "run" / "last.ckpt")
    assert main(["train", *command(grey_run, tmp_path / "run", "--resume")]) == 0
    after = seconds(tmp_path / "run")["epochs"]
    assert after[:2] == [0.0, 1000.0] and 1002.5 < after[2] < after[3] < 1100 and len(after) == 4
    del state["seconds"]
    torch.save(state, tmp_path / "old" / "last.ckpt")
    assert main(["train", *command(grey_run, tmp_path / "old", "--resume")]) == 0
    assert seconds(tmp_path / "old") == {"epochs": [None] * 4, "spent": None}
    capsys.readouterr()
    assert compared(tmp_path / "old", tmp_path / "run", out=tmp_path / "x.png") == 0
    said = capsys.readouterr().out
    assert "16 min 4" in said and any(" -  " in line and "/old " in line for line in said.splitlines())


def test_damaged_times_are_no_times():
    from fastssl.train.clock import Clock, seconds_of

    for stored in (None, 3, {"epochs": [0.0]}, {"epochs": [0.0, math.nan]}, {"epochs": [0.0, "1"]}, {"epochs": [0.0, -1.0]}):
        checkpoint = {"fastssl": {"history": [{}, {}]}, "seconds": stored}
        assert seconds_of(checkpoint) == [None, None]
        clock = Clock(checkpoint)
        clock.start()
        clock.end_epoch()
        assert clock.state() == {"epochs": [None] * 3, "spent": None}
