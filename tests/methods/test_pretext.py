"""RotNet: its loss by its formula in float64, what it must not be able to answer, refusals."""

import math

import pytest
import torch
from torch import nn

from fastssl.methods import RotNet
from tests.support.formulas import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


class Blind(nn.Module):
    """images (B, C, H, W) -> (B, C): the mean colour, which no transformation of places changes."""

    def forward(self, images):
        return images.mean((2, 3))


def images64(batch: int = 3, side: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, dtype=torch.float64)


def cross_entropy64(logits: torch.Tensor, right: list[int]) -> torch.Tensor:
    """The mean of -log softmax, written out."""
    rows = [row.exp().sum().log() - row[k] for row, k in zip(logits.double(), right, strict=True)]
    return torch.stack(rows).mean()


def test_rotnet_is_its_formula():
    method, images = RotNet(tiny()).double(), images64()
    rows, right = [], []
    for k in range(4):
        for image in images:
            turned = image
            for _ in range(k):
                turned = turned.transpose(1, 2).flip(1)  # a quarter turn against the clock
            rows.append(method.classifier(method.backbone(turned[None]))[0])
            right.append(k)
    torch.testing.assert_close(method(images), cross_entropy64(torch.stack(rows), right))
    answers, truth = method.answer(images)
    assert truth.tolist() == right and answers.tolist() == torch.stack(rows).argmax(1).tolist()


def test_an_encoder_that_sees_no_places_cannot_name_rotations():
    method, images = RotNet(Blind(), 3).double(), images64(6)
    assert method(images) >= math.log(4) - 1e-12
    answers, truth = method.answer(images)
    assert (answers == truth).double().mean() == 0.25


def test_rotnet_turns_images_back_by_what_it_names():
    method, images = RotNet(tiny()).double(), images64(8)
    shown, back = method.solve(images, generator=torch.Generator().manual_seed(1))
    again, _ = method.solve(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shown, again) and not torch.equal(shown, images)
    turns = [
        next(k for k in range(4) if torch.equal(row.rot90(-k, (1, 2)), image)) for row, image in zip(shown, images, strict=True)
    ]
    named, _ = method.answer(images)
    for i, k in enumerate(turns):
        assert torch.equal(back[i], shown[i].rot90(-int(named[8 * k + i]), (1, 2)))


REFUSED = {
    "rotnet": (
        lambda: RotNet(tiny()),
        [(torch.rand(2, 3, 4, 6), ValueError, "images must be square")],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_do_not_fit_are_refused(name):
    make, cases = REFUSED[name]
    method = make()
    for images, error, words in [
        *cases,
        (torch.rand(2, 4), ValueError, "B, C, H, W"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), TypeError, "images must be floating"),
    ]:
        with pytest.raises(error, match=words):
            method(images)
    with pytest.raises(TypeError, match="generator must be a"):
        method(torch.rand(2, 3, 4, 4), generator=3)
