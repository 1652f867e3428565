"""LARS and the cosine schedule of ``fastssl.compat`` beside lightly's own and solo-learn's equations: steps, state, options."""

import copy
import warnings
from functools import partial

import pytest
import torch

from fastssl.compat import lightly, solo
from fastssl.testing.compare import assert_no_worse
from tests.support.compat_nets import library
from tests.support.optim_common import parameters

pytestmark = pytest.mark.usefixtures("one_thread")


class SoloEquations(torch.optim.Optimizer):
    """solo-learn's LARS, one tensor at a time."""

    def __init__(
        self, params, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, eta=1e-3, eps=1e-8, clip=False, skip=False
    ):
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "eta", "eps", "clip_lr", "exclude_bias_n_norm")
        super().__init__(
            params, dict(zip(names, (lr, momentum, dampening, weight_decay, nesterov, eta, eps, clip, skip), strict=True))
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, m, wd = group["lr"], group["momentum"], group["weight_decay"]
            for p in group["params"]:
                d, size, push = p.grad, p.norm(), p.grad.norm()
                if size > 0 and push > 0 and not (p.dim() == 1 and group["exclude_bias_n_norm"]):
                    q = group["eta"] * size / (push + wd * size + group["eps"])
                    d = (d + wd * p) * (min(q / lr, 1) if group["clip_lr"] else q)
                if m:
                    first = "momentum_buffer" not in self.state[p]
                    mu = self.state[p].setdefault("momentum_buffer", d.clone())
                    if not first:
                        mu.mul_(m).add_((1 - group["dampening"]) * d)
                    d = d + m * mu if group["nesterov"] else mu
                p.sub_(lr * d)


#: Arguments in their order, after the parameters: lr, momentum, dampening, weight decay, ...
LIGHTLY = {
    "positions": (0.1, 0.9, 0.0, 1e-2),
    "plain": (0.5,),
    "no decay": (0.1, 0.9),
    "nesterov": (0.1, 0.9, 0, 0.05, True, 0.02),
    "dampening": (0.3, 0.8, 0.4, 0.05, False, 0.02, 1e-3),
}
SOLO = LIGHTLY | {
    "clip": (0.05, 0.9, 0, 0.05, False, 0.1, 1e-8, True),
    "exclude": (0.3, 0.9, 0, 0.05, True, 0.02, 1e-8, False, True),
    "dampening, clip": (0.05, 0.9, 0.3, 0.05, False, 0.1, 1e-8, True, True),
}


def run(make, dtype=torch.float32, steps=40):
    """Descends a noisy quadratic with a falling rate; the second parameter is 0 at first."""
    params = parameters(dtype)
    params[1].data.zero_()
    optimizer, generator = make(params), torch.Generator().manual_seed(2)
    rate = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        for i, p in enumerate(params):
            p.grad = 0.1 * (i + 1) * p.detach() + torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return params, optimizer


def assert_steps(name, ours, theirs, arguments):
    (got, optimizer), (want, peer), (truth, exact) = (
        run(lambda params: cls(params, *arguments), dtype)  # noqa: B023
        for cls, dtype in ((ours, torch.float32), (theirs, torch.float32), (theirs, torch.float64))
    )
    for i, values in enumerate(zip(got, want, truth, strict=True)):
        assert_no_worse(f"{name} params[{i}]", *(p.detach() for p in values), torch.float32)
    states = [o.state_dict() for o in (optimizer, peer, exact)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for i, state in states[0]["state"].items():
        assert state.keys() == {"momentum_buffer"} == states[1]["state"][i].keys()
        assert_no_worse(f"{name} momentum[{i}]", *(s["state"][i]["momentum_buffer"] for s in states), torch.float32)
    for a, b in zip(states[0]["param_groups"], states[1]["param_groups"], strict=True):
        assert {k: v for k, v in a.items() if k in optimizer.defaults} == {k: v for k, v in b.items() if k in peer.defaults}


@pytest.mark.parametrize("name", LIGHTLY)
def test_lightlys_lars(name):
    library("lightly")
    assert_steps(name, lightly.LARS, library("lightly.utils.lars").LARS, LIGHTLY[name])


@pytest.mark.parametrize("name", SOLO)
def test_solo_learns_lars(name):
    assert_steps(name, solo.LARS, SoloEquations, SOLO[name])


def test_lars_states_go_both_ways():
    theirs = library("lightly.utils.lars").LARS
    arguments = (0.1, 0.9, 0, 0.05)
    for source, target in ((lightly.LARS, theirs), (theirs, lightly.LARS)):
        params, optimizer = run(lambda p: source(p, *arguments), steps=3)  # noqa: B023
        other = target([torch.nn.Parameter(p.detach().clone()) for p in params], 7.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for o in (optimizer, other):
            for p in o.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            o.step()
        for p, q in zip(params, other.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize("cls", [lightly.LARS, solo.LARS])
def test_lars_refuses_by_name(cls):
    p = [torch.nn.Parameter(torch.ones(2))]
    for arguments, match in (
        ({"lr": -0.1}, "lr"),
        ({"lr": 0.1, "momentum": -0.1}, "momentum"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs momentum"),
        ({"lr": 0.1, "momentum": 0.9, "nesterov": True, "dampening": 0.1}, "nesterov needs a dampening of 0"),
    ):
        with pytest.raises(ValueError, match=f"LARS: {match}"):
            cls(p, **arguments)


def test_lightlys_cosine_schedule():
    theirs = library("lightly.utils.scheduler").cosine_schedule
    cases = [(step, most, 0.99, 1.0, period) for most in (0, 1, 2, 10) for period in (None, 4, 7) for step in range(14)]
    for arguments in cases:
        results = []
        for call in (lightly.cosine_schedule, theirs):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                results.append((call(*arguments), [w.category for w in caught]))
        assert results[0][1] == results[1][1] and abs(results[0][0] - results[1][0]) < 1e-15, arguments
    assert lightly.cosine_schedule(9, 10, 0.99, 1.0) == 1.0
    for arguments in ((-1, 10, 0.0, 1.0), (1, -1, 0.0, 1.0), (1, 10, 0.0, 1.0, 0)):
        for call in (partial(lightly.cosine_schedule), theirs):
            with pytest.raises(ValueError):
                call(*arguments)
