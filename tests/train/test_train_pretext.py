"""Pretext tasks of transformed images in ``fastssl train``: training for real, resume, the picture of their answers."""

import pytest

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, train_briefly, write_grey_classes

NEW = ("rotnet", "relative_position", "jigsaw", "exemplar", "pirl")

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

# method: options of the training, least gain in kNN accuracy over the untrained encoder, least share of right answers; both ask
# for at most half of what was seen above the untrained encoder and above chance, since training on another CPU is another seed.
# None: the puzzles of these crops teach what the vote does not need, and their pairs are hardly placed: docs/pretext.md.
TRAINING = {
    "rotnet": ({"epochs": 3, "batch_size": 32}, 0.035, 0.262),
    "relative_position": ({"epochs": 4, "share": 2}, 0.03, None),
    "jigsaw": ({"epochs": 4, "share": 2}, None, 0.07),
    "exemplar": ({"epochs": 6}, 0.1, 0.003),
    "pirl": ({"epochs": 5, "batch_size": 64}, 0.08, 0.006),
}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_training_beats_the_untrained_encoder(name):
    """A part of the photographs' crops; kNN and questions on held-out ones."""
    options, gain, solved = TRAINING[name]
    found = train_briefly(name, **options)
    assert gain is None or found.after["knn"] > found.before["knn"] + gain
    assert solved is None or found.after["solved"] > solved > found.before["solved"]
    assert found.after["std"] > 0.5 * found.before["std"] and found.after["rank"] > 0.5 * found.before["rank"]


# method: epochs, side of the images, least share of right answers
DIGITS = {"rotnet": (2, 16, 0.55), "relative_position": (6, 24, 0.4)}


@pytest.mark.parametrize("name", of_today(DIGITS, len(DIGITS)))
def test_the_task_is_learned_where_images_have_an_order(name):
    """Small crops of photographs often have no way up and no sides; digits have."""
    epochs, side, solved = DIGITS[name]
    found = train_briefly(name, data="digits", epochs=epochs, share=1, batch_size=32, image_size=side)
    assert found.after["solved"] > solved > 0.05 + found.before["solved"]


OPTIONS = {
    "rotnet": [],
    "relative_position": ["--pairs", "2", "--chroma", "drop"],
    "jigsaw": ["--num-permutations", "6", "--puzzles", "2"],
    "exemplar": ["--backbone", "vit", "--patch-size", "4"],
    "pirl": ["--projection-dim", "16", "--weight", "0.3"],
}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    """Weights, buffers and step of a run that was not interrupted."""
    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "12", "--batch-size", "8"]
    said = (f"{name}, ", "kNN", "std")
    assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=said)
    if name in ("rotnet", "jigsaw"):
        assert (tmp_path / "whole" / "answers.png").stat().st_size > 2000


def test_the_options_of_the_methods(capsys):
    from fastssl.__main__ import main

    for method, wanted in {
        "rotnet": ["--patch-size"],
        "relative_position": ["--pairs", "--chroma"],
        "jigsaw": ["--num-permutations", "--puzzles"],
        "exemplar": ["--jitter"],
        "pirl": ["--weight", "--temperature", "same in all processes"],
    }.items():
        with pytest.raises(SystemExit):
            main(["train", method, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert all(option in said for option in wanted) and f"runs/{method}" in said
    for line, words in (
        ("relative_position --backbone vit", "--backbone vit: takes no parts of 10 x 10 pixels of images of --image-size 32"),
        ("relative_position --channels 1 --chroma drop", "--chroma drop: must be none where the images have not 3 channels"),
        ("jigsaw --num-permutations 1", "--num-permutations"),
        ("jigsaw --backbone vit --image-size 24", "--backbone vit: takes no parts of 6 x 6 pixels of images of --image-size 24"),
        ("image_gpt --feature-layer 3", "--feature-layer: must be below --depth, 3, got 3"),
    ):
        assert main(["train", *line.split()]) == 2 and words in capsys.readouterr().err
