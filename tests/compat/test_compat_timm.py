"""``fastssl.compat.timm`` beside timm's own ``ModelEmaV3``."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

from fastssl.compat import timm
from tests.support.compat_nets import Net, images, library, state, wander

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def their_ema():
    return library("timm.utils").ModelEmaV3


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def assert_follows(ours, theirs, net, steps, first=0):
    for step in range(first, first + steps):
        wander(net)
        ours.update(net, step)
        theirs.update(net, step)
        got, want = state(ours), state(theirs)
        assert list(got) == list(want)
        for name, t in got.items():
            assert t.dtype == want[name].dtype and torch.equal(t, want[name]), (step, name)


@pytest.mark.torch_fuses
@pytest.mark.parametrize("kept", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("exclude_buffers", [False, True])
def test_timm_ema_bit_for_bit(their_ema, kept, exclude_buffers):
    """Every dtype of the model, on or off the model's device (as a string it counts as another one), with and without foreach."""
    for dtype, foreach, device in itertools.product(DTYPES, (True, False), (None, "cpu", torch.device("cpu"))):
        net = Net().to(dtype)
        net.fc.to(torch.float32)  # a model of two dtypes
        options = {"decay": 0.9, "dtype": kept, "foreach": foreach, "device": device, "exclude_buffers": exclude_buffers}
        pair = [cls(net, **options, stochastic_rounding=False) for cls in (timm.ModelEmaV3, their_ema)]
        assert pair[0].foreach == pair[1].foreach
        assert_follows(*pair, net, 3)
        wander(net)
        for ema in pair:
            ema.set(net)
        assert_follows(*pair, net, 2, first=7)


@pytest.mark.torch_fuses
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999, 1.0])
@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"update_after_step": 3},
        {"use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.75},
        {"use_warmup": True, "min_decay": 0.5, "update_after_step": 2},
    ],
)
def test_timm_decay(their_ema, decay, schedule):
    net = Net()
    pair = [cls(net, decay, **schedule) for cls in (timm.ModelEmaV3, their_ema)]
    for step in (None, *range(40), 10**6):
        assert pair[0].get_decay(step) == pair[1].get_decay(step)
    assert_follows(*pair, net, 8)


@pytest.mark.torch_fuses
def test_timm_stochastic_rounding(their_ema):
    """The same two neighbours as timm's in the same shares, with bits of its own; the rest of a mixed model is bit-equal."""
    net = nn.Sequential(nn.Linear(64, 512), nn.BatchNorm1d(512)).bfloat16()
    net[1].float()
    pair = [cls(net, 0.9, stochastic_rounding_seed=5) for cls in (timm.ModelEmaV3, their_ema)]
    wander(net)
    before = pair[0].module[0].weight.detach().float()
    exact = before.mul(0.9).add(net[0].weight.detach().float(), alpha=1 - 0.9)
    for ema in pair:
        ema.update(net)
    results = [ema.module[0].weight.detach().float() for ema in pair]
    bits = exact.view(torch.int32)
    down = (bits & -(1 << 16)).view(torch.float32)
    part = (bits & ((1 << 16) - 1)).double() / (1 << 16)  # the share that must go away from zero
    ups = [(result != down).double() for result in results]
    for result, up in zip(results, ups, strict=True):
        away = (down.view(torch.int32) + (1 << 16)).view(torch.float32)
        assert ((result == down) | (result == away)).all()
        assert abs((up - part).mean()) < 5 * (part * (1 - part)).sum().sqrt() / part.numel()
        assert abs(((up - part) * (part - 0.5)).mean()) < 5 * ((part * (1 - part)) * (part - 0.5) ** 2).sum().sqrt() / part.numel()
    assert not torch.equal(*results)
    assert torch.equal(pair[0].module[1].weight, pair[1].module[1].weight)
    again = timm.ModelEmaV3(net, 0.9, stochastic_rounding_seed=5)
    again.module.load_state_dict({**pair[0].module.state_dict(), "0.weight": before})
    again.update(net)
    assert torch.equal(again.module[0].weight, pair[0].module[0].weight)


def test_timm_ema_goes_on_after_a_checkpoint(their_ema):
    net = Net(tied=True).bfloat16()
    ema = timm.ModelEmaV3(net, 0.9)
    assert not ema.module.training and net.training
    pictures = images(2).bfloat16()
    assert torch.equal(ema(pictures), net.eval()(pictures))
    twin, pickled = copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))
    for _ in range(3):
        wander(net)
        for each in (ema, twin, pickled):
            each.update(net)
    assert all(
        torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*(state(e).values() for e in (ema, twin, pickled)), strict=True)
    )
    theirs = their_ema(net)
    theirs.load_state_dict(ema.state_dict())
    ema.load_state_dict(theirs.state_dict())


def test_timm_tied_weights_move_once():
    net = Net(tied=True)
    ema = timm.ModelEmaV3(net, 0.5)
    before = ema.module.fc.weight.detach().clone()
    wander(net)
    ema.update(net)
    assert torch.equal(ema.module.fc.weight, before.lerp(net.fc.weight, 0.5)) and ema.module.head.weight is ema.module.fc.weight


def test_timm_refuses():
    net = Net()
    for options in ({"decay": math.nan}, {"decay": 1.1}, {"min_decay": -0.1}, {"decay": "0.9"}):
        with pytest.raises((TypeError, ValueError), match="decay"):
            timm.ModelEmaV3(net, **options)
    with pytest.raises(ValueError, match="at least one parameter"):
        timm.ModelEmaV3(nn.Identity())
    for exclude_buffers in (False, True):
        ema = timm.ModelEmaV3(net, 0.9, exclude_buffers=exclude_buffers)
        before = state(ema)
        longer = Net()
        longer.bn.register_buffer("more", torch.zeros(1))
        other = Net()
        other.bn.num_batches_tracked = torch.zeros(2, dtype=torch.int64)
        for model in (Net(9), longer, other, None):
            with pytest.raises((TypeError, ValueError), match=r"ModelEmaV3: (the )?(model|tensor|parameter|buffer)"):
                ema.update(model)
            assert all(torch.equal(t, before[name]) for name, t in state(ema).items())
