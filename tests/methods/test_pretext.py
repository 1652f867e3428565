"""RotNet, relative position, jigsaw puzzles, exemplar networks, PIRL: their formulas in float64, what must not give the answer
away, refusals."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastssl.methods import PIRL, Exemplar, Jigsaw, RelativePosition, RotNet, distant_permutations
from fastssl.methods._patches import cut_tiles
from tests.support.formulas import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


class Blind(nn.Module):
    """images (B, C, H, W) -> (B, C): the mean colour, which no transformation of places changes."""

    def forward(self, images):
        return images.mean((2, 3))


def images64(batch: int = 3, side: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, dtype=torch.float64)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross_entropy64(logits: torch.Tensor, right: list[int]) -> torch.Tensor:
    """The mean of -log softmax, written out."""
    rows = [row.exp().sum().log() - row[k] for row, k in zip(logits.double(), right, strict=True)]
    return torch.stack(rows).mean()


def cells(image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """The 3 x 3 cells of an image (C, 3 side, 3 side), row by row."""
    return [image[:, y : y + side, x : x + side] for y in range(0, 3 * side, side) for x in range(0, 3 * side, side)]


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
    shown, back = method.solve(images, generator=seeded())
    again, _ = method.solve(images, generator=seeded())
    assert torch.equal(shown, again) and not torch.equal(shown, images)
    pairs = zip(shown, images, strict=True)
    turns = [next(k for k in range(4) if torch.equal(row.rot90(-k, (1, 2)), image)) for row, image in pairs]
    named, _ = method.answer(images)
    for i, k in enumerate(turns):
        assert torch.equal(back[i], shown[i].rot90(-int(named[8 * k + i]), (1, 2)))


def test_permutations_are_chosen_greedily_by_their_distance():
    every, chosen = list(itertools.permutations(range(4))), [(0, 1, 2, 3)]
    while len(chosen) < 12:
        left = [p for p in every if p not in chosen]
        apart = [[sum(a != b for a, b in zip(p, q, strict=True)) for q in chosen] for p in left]
        best = max((sum(distances), min(distances)) for distances in apart)
        chosen.append(next(p for p, distances in zip(left, apart, strict=True) if (sum(distances), min(distances)) == best))
    assert distant_permutations(12, 4).tolist() == [list(p) for p in chosen]
    assert sorted(distant_permutations(24, 4).tolist()) == [list(p) for p in every]
    nine = distant_permutations(20)
    assert (nine.sort(1).values == torch.arange(9)).all()
    distances = (nine[:, None] != nine).sum(2)[~torch.eye(20, dtype=torch.bool)]
    assert distances.double().mean() > 8.2 and distances.min() >= 5  # random ones: 8.0, and at times 2


def test_jigsaw_is_its_formula():
    method, images = Jigsaw(tiny(), num_permutations=7, tile_size=4, puzzles=2, hidden_dim=5).double().eval(), images64(3, 12)
    logits, right = method.question(images, seeded())
    rows = []
    for i, k in enumerate(right.tolist()):
        tiles = [cells(images[i % 3], 4)[place] for place in method.permutations[k]]
        tiles = [(tile - tile.mean((1, 2), True)) / (tile.var((1, 2), False, True) + 1e-5).sqrt() for tile in tiles]
        rows.append(method.head(torch.cat([method.backbone(tile[None]) for tile in tiles], 1))[0])
    torch.testing.assert_close(logits, torch.stack(rows))
    torch.testing.assert_close(method(images, generator=seeded()), cross_entropy64(torch.stack(rows), right.tolist()))


def test_jigsaw_tells_nothing_by_the_colours_and_contrast_of_a_tile():
    method, images = Jigsaw(tiny(), num_permutations=7, tile_size=4).double(), images64(3, 15)
    other = images.clone()
    other[:, :, :5, :5] = 0.3 + torch.tensor([0.5, 0.8, 1.2]).view(3, 1, 1) * other[:, :, :5, :5]
    torch.testing.assert_close(method(other, generator=seeded()), method(images, generator=seeded()), rtol=1e-3, atol=0)


def test_jigsaw_tiles_lie_at_many_places_of_their_cells():
    places = torch.arange(18.0).expand(200, 1, 18, 18)  # the column of each pixel
    tiles = cut_tiles("Jigsaw", places, 4, seeded())
    left = tiles[..., 0, 0, 0].long()
    for place in range(9):
        assert sorted(left[:, place].unique().tolist()) == [6 * (place % 3) + i for i in range(3)]


def test_jigsaw_puts_a_puzzle_right_that_it_names_rightly(monkeypatch):
    method, images = Jigsaw(tiny(), num_permutations=7, tile_size=4).double(), images64(6, 12)
    monkeypatch.setattr(method, "named", lambda features, right: F.one_hot(right, 7))
    shuffled, put_right = method.solve(images, generator=seeded())
    assert torch.equal(put_right, images) and not torch.equal(shuffled, images)
    monkeypatch.setattr(method, "named", lambda features, right: F.one_hot((right + 1) % 7, 7))
    assert not torch.equal(method.solve(images, generator=seeded())[1], images)


def test_relative_position_is_its_formula():
    method, images = RelativePosition(tiny(), patch_size=4, pairs=2, chroma="none").double().eval(), images64(3, 14)
    first, second, side = method.cut(images, seeded())
    pairs = zip(first, second, strict=True)
    rows = torch.cat([method.head(torch.cat([method.backbone(a[None]), method.backbone(b[None])], 1)) for a, b in pairs])
    torch.testing.assert_close(method(images, generator=seeded()), cross_entropy64(rows, side.tolist()))


@pytest.mark.parametrize(("size", "gap", "jitter"), [(4, 2, 1), (5, 3, 3), (3, 0, 0)])
def test_patches_lie_on_the_side_that_is_asked_for_and_never_touch(size, gap, jitter):
    """Pixels hold their own place, so that patches tell where they come from."""
    rows = torch.arange(17.0)[:, None].expand(17, 19)
    columns = torch.arange(19.0).expand(17, 19)
    images = torch.stack([rows, columns]).expand(300, 2, 17, 19)
    method = RelativePosition(Blind(), 2, patch_size=size, gap=gap, jitter=jitter, pairs=2, chroma="none")
    first, second, side = method.cut(images, seeded())
    assert first.shape == (600, 2, size, size) and side.bincount().min() > 30
    moved = (second - first)[:, :, 0, 0]
    assert torch.equal(second - first, moved[:, :, None, None].expand(-1, -1, size, size))
    sides = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])[side]
    assert (moved - sides * (size + gap)).abs().max() == jitter
    assert (moved.abs().amax(1) >= size + gap - jitter).all()  # nothing of a patch is in the other one
    tops, lefts = (torch.cat([part[:, axis, 0, 0] for part in (first, second)]) for axis in (0, 1))
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 17 - size, 0, 19 - size)


def test_chromatic_aberration_is_guarded_against():
    images, fringe = images64(5, 14), torch.rand(5, 1, 14, 14, dtype=torch.float64) * torch.tensor([-1.0, 2.0, -1.0]).view(3, 1, 1)
    method = RelativePosition(tiny(), patch_size=4).double()
    torch.testing.assert_close(method(images + fringe, generator=seeded()), method(images, generator=seeded()))
    with pytest.raises(AssertionError):
        method.chroma = "none"
        torch.testing.assert_close(method(images + fringe, generator=seeded()), method(images, generator=seeded()))
    method.chroma = "drop"
    dropped = method.guarded(images, seeded())
    kept = (dropped == images).all(3).all(2)
    assert (kept.sum(1) == 1).all() and dropped[~kept].abs().max() < 0.02


def test_exemplar_is_a_softmax_over_all_samples():
    method, images, index = Exemplar(tiny(), 9).double(), images64(4), torch.tensor([8, 0, 3, 3])
    logits = method.classifier(method.backbone(images))
    torch.testing.assert_close(method(images, index), cross_entropy64(logits, index.tolist()))
    answers, truth = method.answer(images, index)
    assert torch.equal(answers, logits.argmax(1)) and torch.equal(truth, index)
    expected = torch.autograd.grad(cross_entropy64(logits, index.tolist()), list(method.parameters()))
    torch.testing.assert_close(torch.autograd.grad(method(images, index), list(method.parameters())), expected)


class Pooled(nn.Sequential):
    """images (B, 3, H, W) -> (B, 10), whatever H and W are."""

    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(4), *tiny())


def test_pirl_is_two_softmaxes_over_the_bank_which_holds_images_alone():
    method = PIRL(Pooled(), 9, projection_dim=6, weight=0.3, tile_size=4, temperature=0.2, momentum=0.25).double()
    images, index, bank = images64(3, 12), torch.tensor([7, 0, 4]), method.bank.clone()
    loss = method(images, index, generator=seeded())
    draws = seeded()
    torch.rand(3, 9, 2, generator=draws)
    orders = torch.rand(3, 9, generator=draws).argsort(1)
    f = F.normalize(method.projection_head(method.backbone(images)), dim=1)
    puzzles = []
    for image, order in zip(images, orders, strict=True):
        parts = [method.tile_head(method.backbone(cells(image, 4)[place][None])) for place in order]
        puzzles.append(F.normalize(method.puzzle_head(torch.cat(parts, 1)), dim=1))
    terms = [cross_entropy64(z @ bank.T / 0.2, index.tolist()) for z in (torch.cat(puzzles), f)]
    torch.testing.assert_close(loss, 0.3 * terms[0] + 0.7 * terms[1])
    expected = bank.clone()
    expected[index] = F.normalize(0.25 * bank[index] + 0.75 * f.detach(), dim=1)
    torch.testing.assert_close(method.bank, expected)
    answers, truth = method.answer(images, generator=seeded())
    assert torch.equal(answers, (torch.cat(puzzles) @ f.T).argmax(1)) and truth.tolist() == [0, 1, 2]


INDEX = torch.arange(2)
FLAT, BYTES = torch.rand(2, 12), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
REFUSED = {
    "rotnet": (lambda: RotNet(Pooled()), [(torch.rand(2, 3, 4, 6), "images must be square")]),
    "relative_position": (
        lambda: RelativePosition(Pooled(), patch_size=5),
        [
            (torch.rand(2, 3, 16, 12), "sides of at least 13 pixels"),
            (torch.rand(2, 1, 16, 16), "needs images of 3 channels, got 1"),
            (torch.rand(1, 3, 16, 16), "B of at least 2"),  # one row in the batch norm of the head
        ],
    ),
    "jigsaw": (
        lambda: Jigsaw(Pooled(), tile_size=5),
        [(torch.rand(2, 3, 16, 14), "sides of at least 15 pixels"), (torch.rand(1, 3, 16, 16), "B of at least 2")],
    ),
    "pirl": (lambda: PIRL(Pooled(), 5, tile_size=5), [(torch.rand(2, 3, 16, 14), "sides of at least 15 pixels")]),
    "exemplar": (lambda: Exemplar(Pooled(), 5), []),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_do_not_fit_are_refused(name):
    make, cases = REFUSED[name]
    method = make()
    more = (INDEX,) if name in ("pirl", "exemplar") else ()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    for images, words in [*cases, (FLAT, r"must have shape \(B, C, H, W\)"), (BYTES, "images must be floating")]:
        with pytest.raises(TypeError if images is BYTES else ValueError, match=words):
            method(images, *more)
    if name != "exemplar":
        with pytest.raises(TypeError, match="generator must be a"):
            method(torch.rand(2, 3, 16, 16), *more, generator=3)
    if more:
        with pytest.raises(ValueError, match="index must lie in 0 to 4"):
            method(torch.rand(2, 3, 16, 16), INDEX + 4)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: distant_permutations(7, 3), "count must be at most 6"),
        (lambda: distant_permutations(2, 10), "length must be at most 9"),
        (lambda: Jigsaw(tiny(), num_permutations=1), "num_permutations"),
        (lambda: Jigsaw(tiny(), num_permutations=400000), "num_permutations must be at most 362880"),
        (lambda: RelativePosition(tiny(), gap=2, jitter=3), "jitter must be at most gap, 2"),
        (lambda: RelativePosition(tiny(), chroma="grey"), "chroma must be one of"),
        (lambda: PIRL(tiny(), 5, weight=1.5), "weight must be in"),
        (lambda: Exemplar(tiny(), 1), "num_samples"),
    ],
)
def test_arguments_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
