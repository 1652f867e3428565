"""Entropy minimisation, FixMatch, noisy student and group keys in ``fastssl train``: training for real, resume, options."""

import csv

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, train_briefly, write_grey_classes

NEW = ("entropy_minimization", "fixmatch", "noisy_student")

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

# method: least gain in kNN accuracy over the untrained encoder, and least accuracy of its classifier on 18 classes (chance 0.056).
# Of five seeds the least were 0.22 and 0.43, 0.24 and 0.48, 0.20 and 0.41.
TRAINING = {"entropy_minimization": (0.1, 0.2), "fixmatch": (0.1, 0.26), "noisy_student": (0.1, 0.18)}


@pytest.mark.parametrize("name", of_today(NEW, 3))
def test_training_beats_the_untrained_encoder(name):
    """A quarter of the photographs' crops, of which ten of each class have their label; held-out crops."""
    gain, accuracy = TRAINING[name]
    found = train_briefly(name, epochs=4, batch_size=64, image_size=24)
    assert found.before["accuracy"] < 0.12 and found.after["accuracy"] > accuracy
    assert found.after["knn"] > found.before["knn"] + gain


@pytest.mark.parametrize("name", of_today(NEW, 3))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "12", "--batch-size", "8", "--labels-per-class", "3"]
    rounds = ["--rounds", "2"] if name == "noisy_student" else []
    state = assert_resumes_bit_for_bit(
        [name, *where, *rounds], tmp_path, capsys, said=(f"{name}, ", "(6 labelled)", "its classifier")
    )
    if name == "noisy_student":
        assert int(state["method.round"]) == 1
        torch.testing.assert_close(state["method.pseudo"].sum(1), torch.ones(24))


def test_noisy_student_goes_on_in_the_middle_of_a_round(tmp_path, capsys):
    """The pseudo-labels are those of the beginning of the round, not of the weights at which the run was broken off."""
    from fastssl.__main__ import main
    from tests.support.training import assert_same_runs, train_until

    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "12", "--batch-size", "8", "--accelerator", "cpu"]
    options = ["noisy_student", *where, "--workers", "0", "--map", "none", "--epochs", "4", "--rounds", "2", "--threshold", "0"]
    assert main(["train", *options, "--out", str(tmp_path / "whole")]) == 0
    train_until(9, [*options, "--out", str(tmp_path / "parted")])  # after the third epoch: the second round began with it
    assert main(["train", *options, "--out", str(tmp_path / "parted"), "--resume"]) == 0
    assert "resume: 3 of 4 epochs" in capsys.readouterr().out
    assert_same_runs(tmp_path / "parted", tmp_path / "whole")


def test_a_round_of_noisy_student_needs_an_epoch(capsys):
    from fastssl.__main__ import main

    assert main(["train", "noisy_student", "--rounds", "9"]) == 2
    assert "--rounds 9: must be at most the 8 of --epochs" in capsys.readouterr().err


def write_patients(folder, rows) -> None:
    with open(folder / "patients.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "patient"), *rows])


def patients(folder) -> list[tuple[str, str]]:
    """Two images of each patient."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))
    return [(file, f"P{number // 2}") for number, file in enumerate(files)]


def test_groups_are_those_of_the_column(tmp_path):
    from fastssl.train.groups import group_codes

    write_grey_classes(tmp_path)
    paths = sorted(tmp_path.glob("*/*.png"))
    write_patients(tmp_path, patients(tmp_path))
    assert torch.equal(group_codes(tmp_path, paths, "patient"), torch.arange(30) // 2)
    rows = [(name, "" if number < 2 else key) for number, (name, key) in enumerate(patients(tmp_path))]
    write_patients(tmp_path, rows)
    codes = group_codes(tmp_path, paths, "patient")
    assert codes[0] != codes[1] and codes[2] == codes[3]  # without a key: alone


def test_supcon_learns_from_group_keys(tmp_path, capsys, monkeypatch):
    """Images of one folder have no class, and those of a patient are positives: the loss sees the column's groups."""
    from fastssl.__main__ import main
    from fastssl.methods import SupCon

    images = tmp_path / "images"
    write_grey_classes(images)
    write_patients(images, patients(images))
    seen, forward = [], SupCon.forward
    monkeypatch.setattr(SupCon, "forward", lambda self, a, b, labels=None: (seen.append(labels), forward(self, a, b, labels))[1])
    options = ["supcon", "--data", f"folder:{images}", "--group-key", "patient", "--image-size", "12", "--batch-size", "8"]
    assert_resumes_bit_for_bit(options, tmp_path, capsys, said=("groups by patient, of", "kNN"))
    assert max(int(labels.max()) for labels in seen) > 5
    other = tmp_path / "other"
    write_grey_classes(other)
    assert main(["eval", str(tmp_path / "whole"), "--data", f"folder:{other}", "--map", "none"]) == 0  # it needs no groups
    capsys.readouterr()
    for change, words in (
        (["--group-key", "patients"], "no .csv file in"),
        (["--data", "photos"], "needs --data folder:PATH with a .csv file, got --data photos"),
    ):
        assert main(["train", *options, *change, "--out", str(tmp_path / "new")]) == 2
        assert words in capsys.readouterr().err
    (images / "more.csv").write_text("file,patient\na.png,P1\n")
    assert main(["train", *options]) == 2 and "both have such a column" in capsys.readouterr().err
    (images / "more.csv").unlink()
    write_patients(images, patients(images)[:20])
    assert main(["train", *options]) == 2
    assert "patients.csv has no row for" in capsys.readouterr().err
    write_patients(images, [(name, name) for name, _ in patients(images)])
    assert main(["train", *options]) == 2 and "has one image, so there are no positives" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["noisy_student", "exemplar"])
def test_what_a_run_holds_for_its_images_does_not_hinder_scores_on_others(name, tmp_path, capsys):
    """Pseudo-labels and classes of images: other data have other numbers of both. Only what is of all data is scored."""
    from fastssl.__main__ import main

    own, other = tmp_path / "images", tmp_path / "other"
    for folder in (own, other):
        write_grey_classes(folder)
    for i in range(3):  # a third class in fewer images
        (other / "third").mkdir(exist_ok=True)
        (other / "dark" / f"{i}.png").rename(other / "third" / f"{i}.png")
    options = [name, "--image-size", "12", "--batch-size", "8", "--epochs", "1", "--map", "none", "--workers", "0"]
    assert main(["train", *options, "--data", f"folder:{own}", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "named" in said or "its classifier" in said
    assert main(["eval", str(tmp_path / "run"), "--data", f"folder:{other}", "--map", "none", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "3 classes" in said and "linear probe" in said and "named" not in said and "its classifier" not in said
