"""``fastssl eval --few-shot``: the interval, the draws, the two probes, and what the command refuses."""

import re
import shutil

import pytest
import torch

from tests.support.training import needs_train, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def test_the_interval_is_that_of_students_t():
    """With n - 1 degrees of freedom and the standard error of the mean; scipy computes it by its own formula."""
    from scipy import stats

    from fastssl.train.few_shot import confidence_interval

    values = [0.31, 0.42, 0.385, 0.29, 0.402, 0.377, 0.35]
    mean = sum(values) / 7
    error = (sum((value - mean) ** 2 for value in values) / 6) ** 0.5 / 7**0.5
    found = confidence_interval(values)
    assert found.mean == pytest.approx(mean) and found.half == pytest.approx(2.446911851 * error)  # the quantile from a table
    low, high = stats.t.interval(0.95, 6, loc=mean, scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert confidence_interval([0.5] * 4).half == 0


def test_draws_are_seeded_balanced_and_nested():
    from fastssl.train.few_shot import draw_labels

    labels = torch.tensor([0, 2] * 20 + [5] * 7)
    few, more = (draw_labels(labels, number, 6, seed=3) for number in (2, 5))
    assert len({tuple(sorted(draw.tolist())) for draw in more}) == 6  # each draw is another one
    for small, large in zip(few, more, strict=True):
        assert labels[small].bincount().tolist() == [2, 0, 2, 0, 0, 2] and labels[large].bincount().tolist() == [5, 0, 5, 0, 0, 5]
        assert set(small.tolist()) < set(large.tolist()) and len(set(large.tolist())) == 15
    again = draw_labels(labels, 2, 5, seed=4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(few[1:], again, strict=True))
    assert len(draw_labels(labels, 100, 1, seed=0)[0]) == len(labels)


def test_probes_of_features_that_are_known():
    """Classes far apart are told apart with one label each. Features that do not depend on the class are guessed."""
    from fastssl.train.few_shot import draw_labels, few_shot_accuracies

    labels = torch.arange(3).repeat(100)
    known = torch.eye(3)[labels] * 10 + 0.1 * torch.rand(300, 3)
    noise = torch.randn(300, 3)
    chosen = draw_labels(labels, 1, 3, seed=0)
    how = {"chosen": chosen, "knn_k": 1, "knn_t": 0.1}
    assert few_shot_accuracies((known, labels), (known, labels), 3, **how) == {"kNN": [1.0] * 3, "probe": [1.0] * 3}
    guessed = few_shot_accuracies((noise, labels), (noise, labels), 3, **how)
    assert all(0.15 < accuracy < 0.55 for values in guessed.values() for accuracy in values)


def table(text: str) -> dict[int, list[float]]:
    rows = re.findall(r"^  (\d+) +(.*)$", text, re.M)
    return {int(number): [float(value) for value in re.findall(r"([\d.]+) ±", cells)] for number, cells in rows}


def test_the_table_and_the_picture(own_grey_run, capsys):
    from fastssl.__main__ import main

    command = ["eval", str(own_grey_run), "--few-shot", "--labels", "3,1", "--draws", "4", "--workers", "0"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert (
        "accuracy on test images, 6 of them" in said.out and "mean of 4 draws ± 95 % confidence interval (Student's t)" in said.out
    )
    rows = table(said.out)
    assert list(rows) == [1, 3] and all(len(row) == 4 for row in rows.values()) and said.err == ""
    assert min(rows[3][2:]) > 0.9  # the linear probes tell two shades of grey apart, also before the training
    assert (own_grey_run / "few_shot.png").stat().st_size > 10_000
    page = (own_grey_run / "report.html").read_text()
    assert "<h3>Few labels</h3>" in page and "3 labels a class" in page and f"<td>{rows[1][0]:.3f} ± " in page
    assert main(command) == 0 and table(capsys.readouterr().out) == rows
    assert main([*command[:3], "--draws", "2", "--workers", "0"]) == 0
    assert list(table(capsys.readouterr().out)) == [1, 5, 10]  # the default 20 is more than the 12 images of a class


def one_line(said: str) -> str:
    assert said.count("\n") == 1, said
    return said


def test_what_is_refused(grey_run, tmp_path, capsys):
    from fastssl.__main__ import main

    command = ["eval", str(grey_run), "--workers", "0"]
    assert main([*command, "--few-shot", "--labels", "5,13"]) == 2
    assert "--labels 13: class dark has only 12 training samples that can be read" in one_line(capsys.readouterr().err)
    for options, words in (
        (["--draws", "3"], "--draws: is used with --few-shot only"),
        (["--few-shot", "--draws", "1"], "--draws: must be at least 2"),
        (["--few-shot", "--labels", "0,5"], "--labels: must be at least 1"),
        (["--retrieve", "--seed", "1"], "--seed: is used with --few-shot or --fine-tune only"),
    ):
        assert main([*command, *options]) == 2 and words in one_line(capsys.readouterr().err)
    write_grey_classes(tmp_path / "classes")
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate((tmp_path / "classes").rglob("*.png")):
        shutil.copy(path, flat / f"{i}.png")
    for task in (["--few-shot"], ["--retrieve"], ["--fine-tune", "1"]):
        assert main([*command, "--data", f"folder:{flat}", *task]) == 2
        assert "two classes with samples that can be read; a class is a subfolder" in one_line(capsys.readouterr().err)


def test_files_that_cannot_be_read_have_no_label(own_grey_run, tmp_path, capsys):
    """They do not count as images of a class; where a whole class cannot be read, that is said."""
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    for i in range(6):
        (tmp_path / "images" / "light" / f"{i}.png").write_bytes(b"no image")
    command = ["eval", str(own_grey_run), "--data", f"folder:{tmp_path / 'images'}", "--few-shot", "--draws", "2", "--workers", "0"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert list(table(said.out)) == [1, 5] and "6 of 30 files cannot be used" in said.err
    for path in (tmp_path / "images" / "light").iterdir():
        path.write_bytes(b"no image")
    assert main(command) == 2
    assert "few labels, fine-tuning and retrieval need test samples, and two classes" in capsys.readouterr().err.splitlines()[-1]
