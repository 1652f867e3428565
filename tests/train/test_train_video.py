"""The video methods in ``fastssl train``: training for real, resume, options."""

import dataclasses

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, part_of, train_briefly

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def part_of_clips(data, share: int, test_share: int):
    """Every ``share``-th training clip and every ``test_share``-th test clip, and a part of the photographs."""
    from fastssl.train.clips import TensorClips

    def every(half, step):
        parts = (half.clips, half.labels, half.motions, half.paths)
        return TensorClips(*(part[::step] for part in parts), half.class_names)

    parts = {"train": every(data.train, share), "test": every(data.test, test_share), "stills": part_of(data.stills, 4, 2)}
    return dataclasses.replace(data, **parts)


# case: the method, epochs, batch, share of the clips, its own score, by chance, least above chance, least gain in kNN accuracy over
# the untrained encoder, options of the recipe; both margins are at most half of the least of five seeds
TRAINING = {
    "verification": ("frame_order", 8, 32, 2, "right", 1 / 2, 0.03, 0.03, {"task": "verification"}),
    "direction": ("frame_order", 8, 32, 2, "right", 1 / 2, 0.05, 0.03, {"task": "direction"}),
    "order": ("frame_order", 8, 32, 2, "right", 1 / 12, 0.05, 0.02, {"task": "order"}),
}


@pytest.mark.parametrize("case", of_today(TRAINING, len(TRAINING)))
def test_training_solves_the_task_and_beats_the_untrained_encoder(case):
    """A part of the clips; the task on held-out clips, kNN on held-out photographs."""
    name, epochs, batch, share, score, chance, least, gain, options = TRAINING[case]
    found = train_briefly(name, part=part_of_clips, epochs=epochs, batch_size=batch, share=share, test_share=1, **options)
    assert found.losses[-1] < found.losses[0]
    assert found.after[score] > chance + least
    assert found.after["knn"] > found.before["knn"] + gain


NEW = ("frame_order",)
OPTIONS = {"frame_order": ["--task", "order", "--frames", "5"]}


def small_clips(size: int, frames: int):
    """24 training and six test clips of dark and of light noise."""
    from fastssl.train.clips import ClipData, TensorClips
    from fastssl.train.data import ImageData, TensorImages

    draw = torch.Generator().manual_seed(0)

    def half(count):
        labels = torch.arange(count) % 2
        pixels = torch.randint(0, 80, (count, frames, 3, size, size), generator=draw) + 90 * labels.view(-1, 1, 1, 1, 1)
        paths = torch.tensor([0.0, 0.0, 1.0, 0.0]).repeat(count, frames, 1)
        return TensorClips(pixels.to(torch.uint8), labels, torch.zeros_like(labels), paths, ("dark", "light"))

    train, test = half(24), half(6)
    stills = [TensorImages(each.clips[:, 0], each.labels, each.class_names) for each in (train, test)]
    return ClipData("clips", train, test, ImageData("stills", *stills, size), size, frames)


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys, monkeypatch):
    from fastssl.train import clips

    monkeypatch.setattr(clips, "clips", small_clips)
    said = (f"{name}, ", "kNN", "24 training and 6 test clips of 5 frames")
    where = ["--image-size", "16", "--batch-size", "8"]
    assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=said)


def test_the_options_of_the_methods(capsys):
    from fastssl.__main__ import main

    for line, words in (
        ("frame_order --data photos", "--data: unknown clips 'photos'; known: clips, folder:PATH"),
        ("frame_order --task sort", "--task"),
        ("frame_order --frames 4", "--frames"),
    ):
        try:
            code = main(["train", *line.split()])
        except SystemExit as end:
            code = end.code
        assert code == 2 and words in capsys.readouterr().err
