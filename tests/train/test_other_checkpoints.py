"""A checkpoint beside that of a run, such as ``fine_tuned.ckpt``: its scores, pictures and files are never taken for the run's."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.training import needs_train
from tests.train.test_report import page_of, write_png

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
DRAWN = ("map.png", "retrieval.png", "curves.png")


def run_command(*words: object) -> int:
    from fastssl.__main__ import main

    return main([*map(str, words)])


def evaluated(path: Path, *more: str) -> None:
    assert run_command("eval", path, "--workers", "0", *more) == 0


def is_own(table: dict) -> bool:
    return (table["task"], table["checkpoint"]) == ("evaluation", "last.ckpt")


@pytest.fixture
def run(grey_run, tmp_path) -> Path:
    """A run with pictures and a fine-tuned checkpoint, whose encoder is another one."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last.ckpt", "report.html"):
        shutil.copy(grey_run / name, folder)
    tables = [table for table in json.loads((grey_run / "scores.json").read_text())["tables"] if is_own(table)]
    (folder / "scores.json").write_text(json.dumps({"tables": tables}))
    state = torch.load(folder / "last.ckpt", weights_only=True)
    weights = {name: value.flip(0) if value.ndim else value for name, value in state["state_dict"].items()}
    torch.save({"state_dict": weights, "fastssl": state["fastssl"], "fine_tuned": {"epochs": 3}}, folder / "fine_tuned.ckpt")
    for name in DRAWN:
        write_png(folder / name)
    return folder


def score_of(run: Path, checkpoint: str, name: str = "probe") -> float:
    tables = json.loads((run / "scores.json").read_text())["tables"]
    (table,) = (each for each in tables if (each["task"], each["checkpoint"]) == ("evaluation", checkpoint))
    return table["rows"][table["names"].index(name)][1][1]


def test_its_evaluation_is_listed_in_the_report_of_the_run(run, capsys):
    own = {name: (run / name).read_bytes() for name in DRAWN}
    evaluated(run / "fine_tuned.ckpt", "--map", "pca")
    evaluated(run / "fine_tuned.ckpt", "--retrieve")
    said = capsys.readouterr().out
    assert said.count(f"  report      {run / 'report.html'}\n") == 2 and "fine_tuned_map.png" in said
    assert {name: (run / name).read_bytes() for name in DRAWN} == own
    assert {path.name for path in run.glob("*_*.png")} == {"fine_tuned_map.png", "fine_tuned_retrieval.png"}
    page = page_of(run / "report.html")
    assert "Checkpoint" not in page.words("dt") and len(page.of("img")) == 2  # map.png and retrieval.png
    assert [text for text in page.words("caption") if "(fine_tuned.ckpt)" in text] and page.words("h3") == [
        "Evaluation",
        "Retrieval",
    ]
    assert run_command("runs", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["scores"]["probe"] == score_of(run, "last.ckpt")
    before = (run / "report.html").read_bytes()
    assert run_command("report", run / "fine_tuned.ckpt") == 0
    assert (run / "report.html").read_bytes() == before
    page = page_of(run / "fine_tuned_report.html")
    assert "fine_tuned.ckpt, fine-tuned on labels for 3 epochs" in page.words("dd") and len(page.of("img")) == 2
    assert f"{score_of(run, 'fine_tuned.ckpt'):.3f}" in page.words("dd") and not list(run.glob(".pictures-*"))


def test_its_scores_are_not_those_of_the_run_in_a_comparison_and_on_a_card(run, capsys):
    scores = json.loads((run / "scores.json").read_text())
    (table,) = scores["tables"]
    scores["tables"] = [table, json.loads(json.dumps(table)) | {"checkpoint": "fine_tuned.ckpt"}]
    for each, value in zip(scores["tables"], (0.625, 0.125), strict=True):
        each["rows"][each["names"].index("probe")][1][1] = value
    (run / "scores.json").write_text(json.dumps(scores))
    assert run_command("compare", run, run / "fine_tuned.ckpt", "--out", run / "a.png", "--json", run / "a.json") == 0
    last = {Path(row["run"]).name: row["last"] for row in json.loads((run / "a.json").read_text())}
    assert last["fine_tuned.ckpt"] is None and last["run"] is not None
    capsys.readouterr()
    for checkpoint, name, score in ((run, "torch", "0.625"), (run / "fine_tuned.ckpt", "fine_tuned_torch", "0.125")):
        assert run_command("export", checkpoint, "--to", "torch") == 0
        card = (run / "export" / name / "README.md").read_text()
        (row,) = (line for line in card.splitlines() if line.startswith("| linear probe"))
        assert row.endswith(f" {score} |") and f"value: {score}0}}" in card
        assert ("fine-tuned on labels for 3 epochs" in card) == (checkpoint != run)


def test_what_was_found_of_a_checkpoint_that_was_replaced_is_forgotten(run):
    from fastssl.train.scores import keep, read_scores

    evaluated(run / "fine_tuned.ckpt", "--map", "none")
    keep(run, drawn={"fine_tuned_map.png": "photos", "map.png": "photos"})
    assert [table.checkpoint for table in read_scores(run).tables if table.task == "evaluation"] == ["last.ckpt", "fine_tuned.ckpt"]
    keep(run, replaced=run / "fine_tuned.ckpt")
    found = read_scores(run)
    assert {table.checkpoint for table in found.tables} == {"last.ckpt"} and found.drawn == {"map.png": "photos"}


def test_which_checkpoint_a_run_is_known_by(run, tmp_path):
    from fastssl.train.checkpoints import own_checkpoint
    from fastssl.train.rundir import set_earlier_run_aside

    shutil.copy(run / "last.ckpt", run / "previous.ckpt")
    known = {name: own_checkpoint(run / name, run / name, {})[0].name for name in ("last.ckpt", "previous.ckpt", "fine_tuned.ckpt")}
    assert set(known.values()) == {"last.ckpt"} and own_checkpoint(run, run / "previous.ckpt", {})[0].name == "previous.ckpt"
    (run / "last.ckpt").write_bytes(b"damaged")
    assert own_checkpoint(run / "fine_tuned.ckpt", run / "fine_tuned.ckpt", {})[0].name == "previous.ckpt"
    alone = tmp_path / "fine_tuned.ckpt"
    shutil.copy(run / "fine_tuned.ckpt", alone)
    assert own_checkpoint(alone, alone, {})[0] == alone
    write_png(run / "fine_tuned_map.png")
    set_earlier_run_aside(run)
    assert {path.name for path in run.iterdir()} == {"earlier-1"}
