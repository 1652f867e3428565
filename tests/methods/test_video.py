"""Methods that learn from clips: their equations in float64, what is drawn, what they refuse."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.methods import ColorTracking, FrameOrder, NextFrame, TimeContrastive, TrackTriplets
from fastssl.methods._lab import rgb_to_lab
from fastssl.methods.frame_order import arrangements
from tests.methods.test_masked import Maps
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


# --- prediction -------------------------------------------------------------------------------------------------------


def large_clips(batch: int = 3, frames: int = 9) -> torch.Tensor:
    return torch.rand(batch, frames, 3, 8, 8, dtype=torch.float64)


def test_the_next_frame_is_painted_from_the_maps_of_those_before_it():
    torch.manual_seed(0)
    method, given = NextFrame(Maps(), 8, given=3).double().eval(), large_clips()
    total = 0.0
    for clip in given:
        maps = [method.backbone.forward_features(clip[t][None]) for t in (1, 3, 5)]
        total += (method.decoder(method.mix(torch.cat(maps, 1)))[0] - clip[7]).square().mean()
    torch.testing.assert_close(method(given), total / 3)
    assert method.embed(given[:, 0]).shape == (3, Maps()(torch.rand(1, 3, 8, 8)).shape[1])


def grey_maps() -> nn.Module:
    """Lightness (N, 1, 8, 8) -> maps (N, 5, 4, 4); called itself, their mean."""

    class Encoder(nn.Conv2d):
        def forward_features(self, images):
            return nn.Conv2d.forward(self, images)

        def forward(self, images):
            return self.forward_features(images).mean((2, 3))

    return Encoder(1, 5, 2, 2)


def test_colour_tracking_is_the_cross_entropy_of_colours_copied_by_attention():
    torch.manual_seed(0)
    colours = torch.tensor([[0.0, 0.0], [30.0, 10.0], [-30.0, 20.0], [10.0, -30.0], [-9.0, -9.0], [15.0, 25.0], [0.0, 40.0]])
    method, given = ColorTracking(grey_maps(), colours, 8, projection_dim=4).double(), large_clips(6, 2)
    losses = []
    for clip in given:
        lab = rgb_to_lab(clip)
        f = method.project(method.backbone.forward_features(lab[:, :1] / 50 - 1)).flatten(2)
        ab = lab[:, 1:].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)).flatten(2)
        c = (ab[:, :, None] - colours.double().T[:, :, None]).norm(dim=1).argmin(1)
        for reference, target in ((0, 1), (1, 0)):
            for j in range(16):
                share = torch.stack([f[reference, :, i] @ f[target, :, j] for i in range(16)]).softmax(0)
                own = share[c[reference] == c[target, j]].sum()
                losses += [-own.log()] if own > 0 else []
    assert 6 * 16 < len(losses) < 6 * 32
    torch.testing.assert_close(method(given), torch.stack(losses).mean())
    method(given).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_a_colour_that_the_reference_does_not_have_costs_nothing():
    method = ColorTracking(grey_maps(), torch.tensor([[0.0, 0.0], [60.0, 40.0]]), 8)
    red, grey = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1).expand(3, 8, 8), torch.full((3, 8, 8), 0.5)
    loss = method(torch.stack([red, grey])[None])
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in method.parameters())


def test_places_are_compared_in_float32_under_autocast():
    method = ColorTracking(grey_maps(), torch.tensor([[0.0, 0.0], [60.0, 40.0]]), 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(torch.rand(3, 4, 3, 8, 8))
    assert loss.dtype == torch.float32


def test_tracked_colours_are_those_of_the_places_pointed_at():
    """Maps that tell places apart by their lightness point at the same lightness in a frame that was mirrored."""
    colours = torch.tensor([[0.0, 0.0], [60.0, 40.0], [-50.0, 50.0]])
    method = ColorTracking(grey_maps(), colours, 8, projection_dim=1).double()
    with torch.no_grad():
        method.backbone.weight.zero_()[:, :, 0, 0] = 1.0
        method.backbone.bias.zero_()
        method.project.weight.fill_(20.0)
        method.project.bias.zero_()
    frame = torch.full((1, 3, 8, 8), 0.6, dtype=torch.float64)
    frame[:, :, :, 4:] = torch.tensor([0.9, 0.1, 0.1], dtype=torch.float64).view(1, 3, 1, 1)
    painted, found, true = method.track(frame, frame.flip(3))
    light = rgb_to_lab(frame)[0, 0] > 50  # of both colours one is lighter than the middle, one darker
    assert light[0, 0] != light[0, 7] and found.shape == true.shape == (1, 16)
    assert torch.equal(found, true)
    assert (painted - frame.flip(3)).abs().mean() < 0.1


# --- time as a label --------------------------------------------------------------------------------------------------


def test_time_contrastive_is_info_nce_with_the_far_frames_of_all_clips():
    torch.manual_seed(0)
    method, given = TimeContrastive(tiny(), projection_dim=6, temperature=0.3).double().eval(), clips(5)
    times = method.draw(given, torch.Generator().manual_seed(1))
    anchor, near, far = (F.normalize(method.project(given[torch.arange(5), t][:, None])[:, 0], dim=1) for t in times.T)
    logits = anchor @ torch.cat([near, far]).T / 0.3
    expected = F.cross_entropy(logits, torch.arange(5))
    torch.testing.assert_close(method(given, generator=torch.Generator().manual_seed(1)), expected)


def test_times_are_near_and_far_and_all_that_are_allowed_come():
    method, many = TimeContrastive(tiny(), near=2, far=5), torch.zeros(4000, 9, 1)
    torch.manual_seed(0)
    anchor, near, far = method.draw(many).T
    assert {*(near - anchor).tolist()} == {-2, -1, 1, 2} and {*(far - anchor).abs().tolist()} == {5, 6, 7, 8}
    assert {*anchor.tolist()} == set(range(9)) - {4}  # the middle one has no frame that is 5 away


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_track_triplets_rank_the_own_patch_above_those_of_other_tracks(mining):
    torch.manual_seed(0)
    method, given = TrackTriplets(tiny(), projection_dim=6, margin=0.7, mining=mining).double().eval(), clips(5, 2)
    z = F.normalize(method.project(given.transpose(0, 1).flatten(0, 1)), dim=1)
    losses = []
    for i in range(10):
        own = 1 - z[i] @ z[(i + 5) % 10]
        others = torch.stack([1 - z[i] @ z[n] for n in range(10) if n % 5 != i % 5])
        losses += [own - d + 0.7 for d in (others.min()[None] if mining == "hard" else others)]
    torch.testing.assert_close(method(given[:, 0], given[:, 1]), torch.stack(losses).relu().mean())


def test_a_patch_shows_the_same_place_of_the_picture_in_both_frames():
    """A camera that moves, turns by a right angle, or comes nearer: patches cut from a smooth picture."""
    pytest.importorskip("kornia")
    from fastssl.train.clips import track_patches

    def seen(path):
        steps = torch.arange(32.0) - 15.5
        x, y, scale, turn = torch.tensor(path)
        across = x + scale * (turn.cos() * steps[None] - turn.sin() * steps[:, None])
        down = y + scale * (turn.sin() * steps[None] + turn.cos() * steps[:, None])
        return torch.stack([across, down, across - 2 * down]) / 500 + 0.5

    for end, turned in (((13.0, -9.0, 1.0, 0.0), 0), ((8.0, 5.0, 1.0, torch.pi / 2), 1), ((4.0, 4.0, 0.8, 0.0), None)):
        paths = torch.tensor([[0.0, 0.0, 1.0, 0.0], end])[None]
        frames = torch.stack([seen(path) for path in paths[0].tolist()])[None]
        first, last = track_patches(frames, paths, torch.tensor([[0, 1]]), 16)[0]
        middle = torch.tensor([end[0] / 2, end[1] / 2, end[0] / 2 - end[1]]) / 500 + 0.5
        for patch in (first, last):
            torch.testing.assert_close(patch.mean((1, 2)), middle, atol=1e-4, rtol=0)
        if turned is not None:
            torch.testing.assert_close(torch.rot90(last, -turned, (1, 2)), first, atol=1e-4, rtol=0)


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: FrameOrder(tiny(), task="sort"), ValueError, "FrameOrder: task must be one of 'verification', 'direction', 'order'"),
    (lambda: FrameOrder(tiny())(clips(4, 4)), ValueError, r"FrameOrder: clips must .* T of at least 5, got \(4, 4, 3, 4, 4\)"),
    (lambda: FrameOrder(tiny())([1]), TypeError, r"FrameOrder: clips must be a tensor \(B, T, ...\), got list"),
    (lambda: FrameOrder(tiny())(clips(), generator=3), TypeError, "FrameOrder: generator must be a torch.Generator, got int"),
    (lambda: FrameOrder(tiny())(clips()[..., :2].float()), ValueError, "FrameOrder: the backbone failed on frames of clips"),
    (lambda: NextFrame(tiny(), 8), ValueError, "NextFrame: backbone must be a convolutional encoder with forward_features"),
    (lambda: NextFrame(Maps(), 8)(large_clips(2, 4).float()), ValueError, "NextFrame: clips must .* T of at least 5"),
    (lambda: NextFrame(Maps(), 8)(clips().float()), ValueError, "NextFrame: clips must have"),
    (lambda: ColorTracking(grey_maps(), torch.rand(3, 3), 8), ValueError, r"ColorTracking: colours must have shape \(K, 2\)"),
    (lambda: ColorTracking(grey_maps(), [1], 8), TypeError, "ColorTracking: colours must be a tensor"),
    (lambda: TimeContrastive(tiny(), near=3, far=3), ValueError, "TimeContrastive: far must be above near, 3, got 3"),
    (
        lambda: TimeContrastive(tiny())(clips(1).float()),
        ValueError,
        "TimeContrastive: clips must .* B of at least 2",
    ),
    (lambda: TrackTriplets(tiny(), mining="soft"), ValueError, "TrackTriplets: mining must be one of 'hard', 'all'"),
    (lambda: TrackTriplets(tiny(), margin=0.0), ValueError, "TrackTriplets: margin must be above 0"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
