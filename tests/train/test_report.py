"""``report.html`` and ``scores.json`` of a run: what they hold, what they make of hostile names and damaged files, the command."""

import json
import math
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from tests.support.training import needs_train, write_grey_classes
from tests.train.test_compare import write_run

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

EMPTY = {"meta", "img", "line", "polyline", "circle", "br", "link", "input"}


class Page(HTMLParser):
    """Reads a page; an element that is not closed, or not in its order, is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def page_of(path: Path) -> Page:
    """The page, after what holds for every page of ours: it loads nothing, and each part has a name for those who do not see it."""
    page = Page(path.read_text(encoding="utf-8"))
    assert (
        not page.of("script") and not page.of("link") and not any(name.startswith("on") for _, its in page.elements for name in its)
    )
    policy = next(each["content"] for each in page.of("meta") if each.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert len(page.of("h1")) == 1 and page.of("html")[0]["lang"] == "en" and page.words("title")
    assert all(each["src"].startswith("data:image/png;base64,") and each["alt"] for each in page.of("img"))
    assert all(each["role"] == "img" and each["aria-label"] for each in page.of("svg"))
    assert all(each["scope"] in ("col", "row") for each in page.of("th"))
    return page


def reported(*words: str | Path) -> int:
    from fastssl.__main__ import main

    return main(["report", *map(str, words)])


def write_png(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (30, 20)).save(path)


def test_a_training_leaves_scores_and_a_report(grey_run):
    found = json.loads((grey_run / "scores.json").read_text())
    table = found["tables"][0]
    history = torch.load(grey_run / "last.ckpt", weights_only=True)["fastssl"]["history"]
    assert (table["task"], table["checkpoint"], table["epoch"]) == ("evaluation", "last.ckpt", 2)
    knn = dict(zip(table["names"], (values for _, values in table["rows"]), strict=True))["knn"]
    assert knn == [history[0]["knn"], history[2]["knn"]] and table["names"][:2] == ["knn", "probe"]
    training = found["training"]
    assert (
        training["memory"] > 1 << 24
        and training["parameters"] > 1000
        and set(training["versions"]) == {"fastssl", "torch", "Python"}
    )
    page = page_of(grey_run / "report.html")
    assert page.words("h2")[:3] == ["What was trained", "Scores", "Curves"] and "All settings" in page.words("h2")
    assert any("24 training and 6 test images, 2 classes" in text for text in page.words("dd"))
    assert page.words("code")[0].startswith("fastssl train simclr --data=folder:")
    assert [text for text in page.words("td") if text == f"{knn[1]:.3f}"]
    assert page.of("a")[0]["href"] == "https://arxiv.org/abs/2002.05709"
    assert any("SimCLR" in text for text in page.words("p")) and any("GiB at most" in text for text in page.words("dd"))
    assert not (grey_run / "scores.json.partial").exists() and not (grey_run / "retrieval.png").exists()


def test_names_are_text_and_never_markup(tmp_path, capsys):
    hostile = "<script>alert(1)</script>\"'&\n\x1b[2J"
    run = write_run(tmp_path / "run", data=f"folder:/x/{hostile}")
    table = {"task": hostile, "heading": hostile, "data": hostile, "checkpoint": hostile, "epoch": 4, "columns": [hostile]}
    table |= {"rows": [[hostile, [0.5]]], "names": [hostile], "forms": [".3f"]}
    scores = {"tables": [table], "drawn": {"map.png": hostile}, "training": {"device": hostile, "versions": {hostile: hostile}}}
    (run / "scores.json").write_text(json.dumps(scores))
    write_png(run / "map.png")
    assert reported(run) == 0 and capsys.readouterr().err == ""
    page = page_of(run / "report.html")
    text = "\n".join(text for _, text in page.texts)
    assert text.count("alert(1)") >= 8 and "\x1b" not in text
    assert "folder:/x/<script>" in page.words("h1")[0]


def test_what_is_damaged_is_named_and_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "map.png").write_bytes(b"no picture")
    (run / "csv" / "version_0").mkdir(parents=True)
    (run / "csv" / "version_0" / "metrics.csv").write_bytes(b"step,loss_step\n\x00\xff,nan\n1,2,3,4\n")
    write_png(run / "attention.png")
    table = {"task": "few labels", "heading": "h", "data": "d", "checkpoint": "last.ckpt", "epoch": 1, "columns": ["a"]}
    good = table | {"rows": [["x", [0.5]]], "names": ["x"], "forms": [".3f"]}
    bad = (
        {"rows": [["x", [0.5, 0.5]]]},
        {"rows": [["x", ["0.5"]]]},
        {"forms": ["}{"]},
        {"forms": [".999999999f"]},  # a gigabyte of digits
        {"names": []},
        {"task": 3},
        {"epoch": None},
        {"epoch": float("inf")},
        {"rows": [["x", [10**400]]]},
    )
    for content in ("{", "[]", '{"tables": [3]}', '{"drawn": []}', *(json.dumps({"tables": [good | each]}) for each in bad)):
        (run / "scores.json").write_text(content)
        assert reported(run) == 0
        said = capsys.readouterr().err
        assert f"{run / 'scores.json'} cannot be used and is left out" in said and said.count("\n") == 3, content
        assert f"{run / 'map.png'} is no picture" in said, content
        assert f"{run}/csv/version_0/metrics.csv cannot be read and is left out of the report" in said
    page = page_of(run / "report.html")
    assert len(page.of("img")) == 1 and "Attention" in page.words("h2") and "Map of the features" not in page.words("h2")
    (run / "scores.json").unlink()
    os.mkfifo(run / "scores.json")
    assert reported(run) == 0 and "scores.json cannot be used and is left out: ValueError: is no file" in capsys.readouterr().err
    (run / "scores.json").unlink()
    counts = {"memory": 10**400, "parameters": -1, "threads": True}
    (run / "scores.json").write_text(json.dumps({"tables": [good], "training": counts}))
    assert reported(run) == 0 and "Few labels" in page_of(run / "report.html").words("h3")


def test_scores_of_an_earlier_epoch_are_not_those_of_the_run(tmp_path):
    from fastssl.train.report import Run, facts_of
    from fastssl.train.scores import Scores, evaluation_table, scores_of

    noted = torch.load(write_run(tmp_path / "run") / "last.ckpt", weights_only=True)
    run = Run(tmp_path, "last.ckpt", noted, Scores())
    history = scores_of(noted, "last.ckpt", ())
    assert history is not None and history.epoch == 4 and dict(history.rows)["weighted kNN, k=20"] == (0.4, 0.75)
    for epoch, wanted in ((2, 0.75), (4, 0.9)):
        of = {"data": "photos", "checkpoint": "last.ckpt", "epoch": epoch}
        table = evaluation_table({"knn": 0.9}, {"knn": 0.4}, run.config, **of)
        found = scores_of(noted, "last.ckpt", (table,))
        assert found is not None and found.rows[0][1][1] == wanted
    assert not [value for _, value in facts_of(run) if "ckpt" in value]
    assert ("Checkpoint", "fine_tuned.ckpt") in facts_of(replace(run, checkpoint="fine_tuned.ckpt"))


def test_an_answer_replaces_the_one_to_the_same_question(tmp_path):
    from fastssl.train.scores import Table, keep, read_scores

    def table(task: str, value: float, data: str = "photos") -> Table:
        return Table(task, "heading", data, "last.ckpt", 1, ("a",), (("x", (value,)),), ("x",), (".3f",))

    keep(tmp_path, table("retrieval", 0.1), drawn={"map.png": "photos"}, training={"memory": 3})
    keep(tmp_path, table("retrieval", math.nan), table("retrieval", 0.2, "digits"), drawn={"retrieval.png": "digits"})
    keep(tmp_path, table("evaluation", 0.3))
    found = read_scores(tmp_path)
    assert {(each.task, each.data): each.rows[0][1] for each in found.tables} == {
        ("retrieval", "photos"): (None,),
        ("retrieval", "digits"): (0.2,),
        ("evaluation", "photos"): (0.3,),
    }
    assert found.drawn == {"map.png": "photos", "retrieval.png": "digits"} and found.training == {"memory": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_every_method_has_a_paper_and_every_picture_a_text():
    from fastssl.train.papers import PAPERS
    from fastssl.train.recipes import METHODS, RECIPES
    from fastssl.train.report import PICTURES
    from fastssl.train.rundir import DRAWN
    from fastssl.train.scores import FORM

    assert all(FORM.fullmatch(form) for recipe in RECIPES.values() for _, _, form in recipe.watch.values())
    assert tuple(PAPERS) == METHODS and set(PICTURES) == set(DRAWN) - {"curves.png"}
    methods = Path(__file__).resolve().parents[2] / "fastssl" / "methods"
    for name, paper in PAPERS.items():
        source = (methods / f"{name.removesuffix('_sound')}.py").read_text()
        first, year = paper.authors.split()[0], paper.authors[-4:]
        assert paper.link.startswith("https://") and first in source and year in source, name
        assert paper.link in source or "arxiv" not in paper.link, name
        assert RECIPES[name].settings.method == name


def test_the_command_trains_with_the_settings_of_the_run():
    from fastssl.train.options import train_options
    from fastssl.train.recipes import RECIPES
    from fastssl.train.report import command_of, settings_rows
    from fastssl.train.settings import changed, settings_of

    for name, recipe in RECIPES.items():
        config = recipe.settings(epochs=5, seed=7, lr=2e-4)
        config = changed(config, data="folder:/a b/'c", norm_pix_loss=True, pixel_range=(-1000.0, 0.5))
        words = shlex.split(command_of(config))
        assert words[:3] == ["fastssl", "train", name]
        given = train_options(words[2:])
        again = recipe.settings(**{key: value for key, value in given.items() if key in settings_of(recipe.settings)})
        assert again == config, name
        rows = {flag: (value, own) for flag, value, own in settings_rows(config)}
        assert rows["--seed"] == ("7", True) and rows["--weight-decay"][1] is False


def test_losses_of_steps_are_joined_over_the_starts_of_a_run(tmp_path):
    """Ten steps an epoch; the second start, after a kill, repeats the steps from the tenth on."""
    from fastssl.train.report_curves import step_losses

    assert step_losses(tmp_path) == []
    first = "epoch,loss,loss_step,step\n0,,3.0,4\n0,2.5,,9\n1,,2.0,14\n"
    second = "epoch,loss,loss_step,step\n1,,1.5,10\n1,,1.0,19\n1,1.2,,19\n2,,nan,24\n"
    for number, text in ((0, first), (10, second)):
        (tmp_path / "csv" / f"version_{number}").mkdir(parents=True)
        (tmp_path / "csv" / f"version_{number}" / "metrics.csv").write_text(text)
    assert step_losses(tmp_path) == [(0.5, 3.0), (1.1, 1.5), (2.0, 1.0)]


def test_a_chart_has_its_points_where_they_belong():
    from fastssl.train.chart import HEIGHT, LEFT, MOST_POINTS, RIGHT, WIDTH, line_chart

    chart = line_chart([(0, 0.25), (4, 0.75)], title="t", text="t.", level=(0.25, "untrained"), share=True)
    (x0, y0), (x1, y1) = chart.dots
    heights = {text: height for height, text in chart.y_ticks}
    assert (x0, x1) == (LEFT, WIDTH - RIGHT) and y0 == pytest.approx(heights["0"] + 0.25 * (heights["1"] - heights["0"]), abs=0.1)
    assert y1 < y0 and chart.level is not None and chart.level[:2] == (y0, "untrained 0.250") and chart.last[2] == "0.750"
    for values in ([(1, 3.0)], [(1, 2.0), (2, 2.0)], [(i, i * 1e-9) for i in range(1, 5000)], [(1, -1e30), (9, 1e30)]):
        chart = line_chart(values, title="t", text="t.", faint=values)
        points = [tuple(map(float, each.split(","))) for each in chart.line.split()]
        assert len(points) <= MOST_POINTS and all(LEFT <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
        assert points[-1] == chart.last[:2] and len(chart.y_ticks) >= 1 and len(chart.x_ticks) <= 9


def test_neighbours_are_drawn_with_classes_and_without(tmp_path, monkeypatch):
    """Features that are the pixels: all neighbours of a shade of grey have its class. A flat folder has no classes to mark."""
    from fastssl.train import pictures, retrieval
    from fastssl.train.data import load_data
    from fastssl.train.recipes import RECIPES

    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(retrieval, "MOST_BANK", 7)
    config = RECIPES["simclr"].settings()
    write_grey_classes(tmp_path / "images")
    (tmp_path / "images" / "dark" / "0.png").write_bytes(b"no image")
    for folder, words in (("images", ["3 of 3", "4 of 4"]), ("images/light", [])):
        data = load_data(f"folder:{tmp_path / folder}", 16)
        assert retrieval.draw_neighbours(torch.nn.Flatten(), data, config, tmp_path / "x.png", device="cpu", workers=0)
        counts = [text.get_text() for text in drawn[-1].axes[0].texts if " of " in text.get_text()]
        assert len(counts) == len(words) and all(int(each.split()[0]) >= 3 for each in counts)
    empty = replace(data, test=torch.utils.data.Subset(data.train, []))
    assert not retrieval.draw_neighbours(torch.nn.Flatten(), empty, config, tmp_path / "x.png", device="cpu", workers=0)


def test_several_runs_get_a_page_that_leads_to_their_own(tmp_path, capsys, monkeypatch):
    runs = write_run(tmp_path / "runs" / "a & <b>"), write_run(tmp_path / "runs" / "c", "byol", end=0.8)
    monkeypatch.chdir(tmp_path)
    assert reported("runs/*", "--out", tmp_path / "new" / "all.html") == 0
    assert capsys.readouterr().out.count("report.html\n") == 2
    page = page_of(tmp_path / "new" / "all.html")
    links = [unquote(each["href"] or "") for each in page.of("a")]
    assert [(tmp_path / "new" / link).resolve() for link in links] == [(run / "report.html").resolve() for run in runs[::-1]]
    odd = [write_run(Path(os.fsdecode(bytes(tmp_path) + name))) for name in (b"/no\xffutf8", b"/$\\frac$")]
    assert reported(*odd, "--out", tmp_path / "odd.html") == 0
    assert "simclr" in (tmp_path / "odd.html").read_text() and "no%FFutf8/report.html" in (tmp_path / "odd.html").read_text()
    capsys.readouterr()
    assert page.words("a") == ["runs/c", "runs/a & <b>"] and len(page.of("img")) == 1
    assert "weighted kNN, k=20, accuracy on test images; photos, 32 x 32" in page.words("h2")
    assert reported(runs[0], "--out", tmp_path / "one.html") == 0 and "SimCLR on photos" in page_of(tmp_path / "one.html").words(
        "h1"
    )
    capsys.readouterr()
    for words, said in (([tmp_path / "none"], "no such file or directory"), ([runs[0], "--out", tmp_path], "is a directory")):
        assert reported(*words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_page_is_replaced_as_a_whole(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    assert reported(run) == 0
    before = (run / "report.html").read_bytes()
    monkeypatch.setattr("fastssl._aside.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert reported(run) == 1
    assert (run / "report.html").read_bytes() == before and re.fullmatch(r"last.ckpt report.html", names_in(run))


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    from fastssl.train.pictures import draw_curves

    history, path = [{"epoch": 0, "loss": None}, {"epoch": 1, "loss": 1.0}], tmp_path / "curves.png"
    draw_curves(history, path, loss="L", score="knn", title="$\\no$ \udcff")
    before = path.read_bytes()

    def full(self, where, **how):
        where.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError):
        draw_curves(history, path, loss="L", score="knn", title="")
    assert path.read_bytes() == before and names_in(tmp_path) == "curves.png"


def test_scores_that_are_added_at_the_same_time_are_all_kept(tmp_path):
    def add(i: int) -> None:
        table = Table("retrieval", "h", f"data {i}", "last.ckpt", 1, ("a",), (("x", (0.5,)),), ("x",), (".3f",))
        keep(tmp_path, table)

    from fastssl.train.scores import Table, keep, read_scores

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(24)))
    assert len(read_scores(tmp_path).tables) == 24 and names_in(tmp_path) == "scores.json"


def names_in(folder: Path) -> str:
    return " ".join(sorted(path.name for path in folder.iterdir()))
