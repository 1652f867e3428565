"""Methods that learn from clips: their equations in float64, what is drawn, what they refuse."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from fastssl.methods import FrameOrder
from fastssl.methods.frame_order import arrangements
from tests.support.formulas import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def clips(batch: int = 4, frames: int = 9) -> torch.Tensor:
    return torch.rand(batch, frames, 3, 4, 4, dtype=torch.float64)


# --- the order of frames ----------------------------------------------------------------------------------------------


def test_the_arrangements_are_those_of_the_papers():
    places, classes = arrangements("verification")
    for row, name in zip(places.tolist(), classes.tolist(), strict=True):
        assert (sorted(row) in (row, row[::-1])) == bool(name) and {row[0], row[2]} == {1, 3}
    assert classes.double().mean() == 0.5
    places, classes = arrangements("order")
    assert {tuple(row) for row in places.tolist()} | {tuple(row[::-1]) for row in places.tolist()} == set(permutations(range(4)))
    assert classes.tolist() == list(range(12))
    places, classes = arrangements("direction")
    assert places.tolist() == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]] and classes.tolist() == [1, 0]


@pytest.mark.parametrize("task", ["verification", "direction", "order"])
def test_the_loss_is_the_cross_entropy_of_each_arrangement_of_each_clip(task):
    torch.manual_seed(0)
    method = FrameOrder(tiny(), task=task).double().eval()
    given = clips()
    times = {"verification": range(0, 9, 2), "direction": range(0, 9, 2), "order": range(1, 8, 2)}[task]
    losses = []
    for clip in given:
        for row, name in zip(*arrangements(task), strict=True):
            z = torch.cat([method.backbone(clip[times[place]][None])[0] for place in row])
            losses.append(-F.log_softmax(method.head(z[None])[0], 0)[name])
    torch.testing.assert_close(method(given), torch.stack(losses).mean())


def test_a_clip_and_its_reverse_get_each_others_answers():
    method, given = FrameOrder(tiny(), task="direction").double().eval(), clips()
    torch.testing.assert_close(method.answers(given)[:, 0], method.answers(given.flip(1))[:, 1])


def test_training_draws_the_first_frame_and_a_generator_repeats_it():
    torch.manual_seed(0)
    method, number = FrameOrder(tiny(), task="order").double(), torch.arange(9.0, dtype=torch.float64).view(1, 9, 1, 1, 1)
    seen = []
    method.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 0, 0, 0].view(-1, 4)))
    given = number.expand(200, 9, 3, 4, 4)
    for _ in range(2):
        method(given, generator=torch.Generator().manual_seed(3))
    assert torch.equal(*seen)
    assert (seen[0].diff(dim=1) == 2).all() and seen[0][:, 0].unique().tolist() == [0, 1, 2]


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: FrameOrder(tiny(), task="sort"), ValueError, "FrameOrder: task must be one of 'verification', 'direction', 'order'"),
    (lambda: FrameOrder(tiny())(clips(4, 4)), ValueError, r"FrameOrder: clips must .* T of at least 5, got \(4, 4, 3, 4, 4\)"),
    (lambda: FrameOrder(tiny())([1]), TypeError, r"FrameOrder: clips must be a tensor \(B, T, ...\), got list"),
    (lambda: FrameOrder(tiny())(clips(), generator=3), TypeError, "FrameOrder: generator must be a torch.Generator, got int"),
    (lambda: FrameOrder(tiny())(clips()[..., :2].float()), ValueError, "FrameOrder: the backbone failed on frames of clips"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
