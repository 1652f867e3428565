"""Colourization, split-brain, ImageGPT, DIM and AMDIM in ``fastssl train``: training for real, pictures, resume."""

import pytest

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, train_briefly, write_grey_classes

NEW = ("colorization", "split_brain", "image_gpt", "dim", "amdim")

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

# method: epochs, batch, least gain in kNN accuracy over the untrained encoder, what must hold of the task's scores, options
TRAINING = {
    "colorization": (3, 64, 0.07, lambda found: found.after["even"] > found.after["chance"] + 0.04, {}),
    "split_brain": (3, 64, 0.07, lambda found: found.after["top5"] > 0.5, {}),
    "image_gpt": (2, 64, 0.05, lambda found: found.after["bits"] < found.after["unigram"] - 1.0, {}),
    "dim": (2, 64, 0.09, lambda found: found.after["found"] > 0.1, {}),
    "amdim": (2, 64, 0.09, lambda found: found.after["found"] > 0.04, {}),
}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_training_solves_the_task_and_beats_the_untrained_encoder(name):
    """A quarter of the photographs' crops; kNN on held-out ones."""
    epochs, batch, gain, solved, options = TRAINING[name]
    found = train_briefly(name, epochs=epochs, batch_size=batch, **options)
    assert found.losses[-1] < found.losses[0] and solved(found)
    assert found.after["knn"] > found.before["knn"] + gain


OPTIONS = {
    "colorization": ["--image-size", "16"],
    "split_brain": ["--image-size", "16"],
    "image_gpt": ["--image-size", "8", "--palette-size", "8", "--width", "8", "--depth", "2", "--heads", "2"],
    "dim": ["--image-size", "12", "--projection-dim", "8"],
    "amdim": ["--image-size", "12", "--projection-dim", "8"],
}
PICTURES = {"colorization": "colours.png", "split_brain": "colours.png", "image_gpt": "completions.png"}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--batch-size", "8"]
    assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=(f"{name}, ", "kNN", "std"))
    assert name not in PICTURES or (tmp_path / "whole" / PICTURES[name]).exists()


def test_the_scores_of_colours():
    """Of a method that always tells the same colours: by hand."""
    from types import SimpleNamespace

    import torch

    from fastssl.methods._colour_method import ColourMethod
    from fastssl.methods._lab import ColourBins, lab_to_rgb
    from fastssl.train.colours import colour_scores
    from fastssl.train.data import TensorImages

    class Same(ColourMethod):
        def __init__(self):
            super().__init__(8, 4, 0.5, 5.0, 0.01)
            self.side, self.weight = 2, torch.nn.Parameter(torch.zeros(1))

        def colour_logits(self, lab, dtype):
            scores = (ColourBins().bins - torch.tensor([20.0, 10.0])).square().sum(1).neg()
            return scores[None, :, None, None].expand(len(lab), -1, 2, 2)

    colours = torch.tensor([[0.0, 0.0], [0.0, 0.0], [20.0, 20.0], [20.0, 0.0], [-30.0, 30.0]])
    lab = torch.cat([torch.full((5, 1), 60.0), colours], 1)[:, :, None, None].expand(-1, -1, 8, 8)
    pixels = (lab_to_rgb(lab) * 255).round().to(torch.uint8)
    data = SimpleNamespace(test=TensorImages(pixels, torch.zeros(5).long(), ("one",)), image_size=8)
    scores = colour_scores(Same(), data, device="cpu", workers=0, most=None)
    assert scores["even"] == pytest.approx(2 / 4) and scores["top5"] == pytest.approx(2 / 5) and scores["common"] == 1.0
    assert scores["chance"] == 1.0  # of four colours any five are all
    want = {"ab": (2 * 22.36 + 10 + 10 + 53.85) / 5, "grey": (28.28 + 20 + 42.43) / 5}
    assert all(scores[name] == pytest.approx(value, rel=0.03) for name, value in want.items())


def test_the_costs_of_the_simple_models():
    import math

    import torch

    from fastssl.train.pixels import costs_of_simple_models

    same = torch.tensor([0, 1, 0, 1]).view(4, 1, 1).expand(4, 4, 4)
    costs = costs_of_simple_models(same, same, 2)
    assert costs["unigram"] == pytest.approx(1.0)
    want = (1 + 15 * -math.log2(0.95 + 0.05 * 0.5)) / 16  # q is at most 0.95; the first pixel has no neighbour
    assert costs["copy"] == pytest.approx(want)
    noise = torch.arange(64).view(1, 8, 8) % 2  # never the neighbour's colour, but in the first column
    assert costs_of_simple_models(noise, noise, 2)["copy"] == pytest.approx(1.0)
