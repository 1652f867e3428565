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


# case: the method; the settings of a short training; how far its own score on held-out clips lies above chance, or above the
# simplest guess; the least of that; the least gain in kNN accuracy over the untrained encoder, None where the task gives none in so
# short a training (docs/video.md has the numbers). Both are at most half of the least of the seeds on that page.
SHORT = {"epochs": 8, "image_size": 24}
TRAINING = {
    "verification": ("frame_order", {**SHORT, "task": "verification"}, lambda _, after: after["right"] - 1 / 2, 0.07, None),
    "direction": ("frame_order", {**SHORT, "task": "direction"}, lambda _, after: after["right"] - 1 / 2, 0.1, None),
    "order": ("frame_order", {**SHORT, "task": "order"}, lambda _, after: after["right"] - 1 / 12, 0.15, None),
    "next_frame": (
        "next_frame",
        {"epochs": 8, "share": 2, "batch_size": 16},
        lambda _, after: 1 - after["error"] / after["copy"],
        0.05,
        0.02,
    ),
    "color_tracking": ("color_tracking", {**SHORT, "epochs": 6}, lambda _, after: after["right"] - after["same"], 0.04, 0.02),
    "time_contrastive": (
        "time_contrastive",
        {"epochs": 6, "share": 2},
        lambda before, after: after["found"] - before["found"],
        0.08,
        0.06,
    ),
    "track_triplets": ("track_triplets", {"epochs": 10}, lambda before, after: after["found"] - before["found"], 0.02, 0.08),
}


@pytest.mark.parametrize("case", of_today(TRAINING, len(TRAINING)))
def test_training_solves_the_task_and_beats_the_untrained_encoder(case):
    """A part of the clips; the task on held-out clips, kNN on held-out photographs."""
    name, options, above, least, gain = TRAINING[case]
    found = train_briefly(name, part=part_of_clips, test_share=1, **{"share": 1, **options})
    assert found.losses[-1] < found.losses[0]
    assert above(found.before, found.after) > least
    if gain is not None:
        assert found.after["knn"] > found.before["knn"] + gain


OPTIONS = {
    "frame_order": ["--task", "order"],
    "next_frame": ["--given", "2"],
    "color_tracking": ["--num-colours", "3", "--projection-dim", "8"],
    "time_contrastive": ["--far", "3", "--projection-dim", "8"],
    "track_triplets": ["--projection-dim", "8"],
}
PICTURES = {"next_frame": "next_frames.png", "color_tracking": "colour_tracking.png"}


def small_clips(size: int, frames: int):
    """24 training and six test clips of dark and of light noise."""
    from fastssl.train.clips import ClipData, TensorClips
    from fastssl.train.data import ImageData, TensorImages

    draw = torch.Generator().manual_seed(0)

    def half(count):
        labels = torch.arange(count) % 2
        pixels = torch.randint(0, 80, (count, frames, 3, size, size), generator=draw) + 90 * labels.view(-1, 1, 1, 1, 1)
        paths = torch.tensor([0.0, 0.0, 1.0, 0.0]).repeat(count, frames, 1)
        pixels[:, :, 0, : size // 2] += 60  # some red, for the colours
        return TensorClips(pixels.clamp(max=255).to(torch.uint8), labels, torch.zeros_like(labels), paths, ("dark", "light"))

    train, test = half(24), half(6)
    stills = [TensorImages(each.clips[:, 0], each.labels, each.class_names) for each in (train, test)]
    return ClipData("clips", train, test, ImageData("stills", *stills, size), size, frames)


@pytest.mark.parametrize("name", of_today(OPTIONS, len(OPTIONS)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys, monkeypatch):
    from fastssl.train import clips

    monkeypatch.setattr(clips, "clips", small_clips)
    said = (f"{name}, ", "kNN", "24 training and 6 test clips of 5 frames")
    where = ["--frames", "5", "--image-size", "16", "--batch-size", "8"]
    assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=said)
    assert name not in PICTURES or (tmp_path / "whole" / PICTURES[name]).exists()


def test_the_options_of_the_methods(capsys):
    from fastssl.__main__ import main

    for line, words in (
        ("frame_order --data photos", "--data: unknown clips 'photos'; known: clips, folder:PATH"),
        ("frame_order --task sort", "--task"),
        ("frame_order --frames 4", "--frames"),
        ("next_frame --given 9", "--given 9: must be below --frames 9"),
        ("next_frame --backbone conv --image-size 24", "--image-size 24: must be a multiple of 16 for next_frame"),
        ("color_tracking --num-colours 1", "--num-colours"),
        ("time_contrastive --near 4", "--far 4: must lie above --near 4 and below --frames 9"),
        ("track_triplets --mining soft", "--mining"),
    ):
        try:
            code = main(["train", *line.split()])
        except SystemExit as end:
            code = end.code
        assert code == 2 and words in capsys.readouterr().err
