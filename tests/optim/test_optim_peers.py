"""A hundred steps of LARS and AdamW against the field's implementations."""

import functools
from functools import partial

import pytest
import torch

from fastssl.ops._register import OWNERS
from fastssl.optim import LARS, AdamW
from fastssl.testing.compare import assert_no_worse
from tests.support.optim_common import LARS_RATES, lightly, parameters, timm


class PlainLARS(torch.optim.Optimizer):
    """The equations of "moco_v3" and "paper", one tensor at a time."""

    def __init__(self, params, lr, momentum=0.9, weight_decay=0.0, eta=0.001, eps=1e-8, form="moco_v3", nesterov=False):
        rates = {"m": momentum, "wd": weight_decay, "eta": eta, "eps": eps, "form": form, "nesterov": nesterov}
        super().__init__(params, rates | {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            eta, lr, m, paper = group["eta"], group["lr"], group["m"], group["form"] == "paper"
            for p in group["params"]:
                mu = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                wd = group["wd"] if paper or p.dim() > 1 else 0.0
                d, q = p.grad + wd * p, 1.0
                if paper and wd:
                    q = eta * p.norm() / (p.grad.norm() + wd * p.norm() + group["eps"])
                elif p.dim() > 1 and p.norm() > 0 and d.norm() > 0:
                    q = eta * p.norm() / d.norm()
                move = d * (q * lr if paper else q)
                mu.copy_(mu * m + move)
                p.sub_((move + m * mu if group["nesterov"] else mu) * (1.0 if paper else lr))


PAIRS = {
    "larc, timm": (partial(LARS, form="larc", **LARS_RATES), lambda: timm(**LARS_RATES)),
    "larc, timm, nesterov": (
        partial(LARS, form="larc", nesterov=True, eps=1.0, **LARS_RATES),
        lambda: timm(nesterov=True, eps=1.0, **LARS_RATES),
    ),
    "larc, timm, clip": (  # binding for some tensors only
        partial(LARS, form="larc", clip=True, lr=0.05, momentum=0.9, weight_decay=0.05, trust_coefficient=0.1),
        lambda: timm(trust_clip=True, lr=0.05, momentum=0.9, weight_decay=0.05, trust_coeff=0.1),
    ),
    "larc, timm, all adapted": (
        partial(LARS, form="larc", adapt=True, lr=3.0, momentum=0.8),
        lambda: timm(always_adapt=True, lr=3.0, momentum=0.8),
    ),
    "larc, lightly": (partial(LARS, form="larc", **LARS_RATES), lambda: lightly(**LARS_RATES)),
    "larc, lightly, not adapted": (partial(LARS, form="larc", lr=0.1), lambda: lightly(lr=0.1, momentum=0.9)),
    "moco_v3": (partial(LARS, **LARS_RATES), lambda: partial(PlainLARS, **LARS_RATES)),
    "moco_v3, nesterov": (partial(LARS, nesterov=True, **LARS_RATES), lambda: partial(PlainLARS, nesterov=True, **LARS_RATES)),
    "moco_v3, no decay": (partial(LARS, lr=3.0), lambda: partial(PlainLARS, lr=3.0)),
    "paper": (partial(LARS, form="paper", **LARS_RATES), lambda: partial(PlainLARS, form="paper", **LARS_RATES)),
    "paper, nesterov": (
        partial(LARS, form="paper", nesterov=True, eps=1.0, **LARS_RATES),
        lambda: partial(PlainLARS, form="paper", nesterov=True, eps=1.0, **LARS_RATES),
    ),
    "AdamW": (partial(AdamW, lr=0.05), lambda: partial(torch.optim.AdamW, lr=0.05)),
    "AdamW, other rates": (
        partial(AdamW, lr=0.01, betas=(0.4, 0.95), eps=1e-4, weight_decay=0.3),
        lambda: partial(torch.optim.AdamW, lr=0.01, betas=(0.4, 0.95), eps=1e-4, weight_decay=0.3),
    ),
}


def run(make, steps=100, dtype=torch.float32, params=None):
    """Descends a noisy quadratic with a falling rate -> parameters, the state's tensors by name."""
    params = parameters(dtype) if params is None else params
    optimizer = make(params)
    rate = optimizer.param_groups[0]["lr"]
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1.0 - step / steps)
        for i, p in enumerate(params):
            p.grad = 0.1 * (i + 1) * p.detach() + torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    names = [name for name in optimizer.state[params[0]] if name != "step"]
    return [p.detach() for p in params], {name: [optimizer.state[p][name] for p in params] for name in names}


@functools.cache
def run_peer(name, dtype):
    return run(PAIRS[name][1](), dtype=dtype)


@pytest.mark.parametrize("name", PAIRS)
def test_a_hundred_steps_are_no_worse_than_the_peers(name, isa):
    params, state = run(PAIRS[name][0])
    (theirs, their_state), (truth, true_state) = (run_peer(name, dtype) for dtype in (torch.float32, torch.float64))
    for i, values in enumerate(zip(params, theirs, truth, strict=True)):
        assert_no_worse(f"{name} params[{i}]", *values, torch.float32)
    assert state.keys() == their_state.keys()
    for key in state:
        for i, values in enumerate(zip(state[key], their_state[key], true_state[key], strict=True)):
            assert_no_worse(f"{name} {key}[{i}]", *values, torch.float32)
    assert all((p - q).norm() > 0.1 * q.norm() for p, q in zip(params, parameters(), strict=True) if p.numel() > 1)  # they did move


@pytest.mark.torch_fuses
def test_adamw_rounds_as_torch_but_for_its_square_root():
    """MKL's, which torch.optim.AdamW uses on the CPU, is not always the nearest float: with one that is, every bit is the same."""
    rates = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
    (p, q), (g,) = (torch.nn.Parameter(torch.randn(90_301)) for _ in range(2)), (torch.empty(90_301),)
    q.data.copy_(p.data)
    ours, theirs = AdamW([p], **rates), torch.optim.AdamW([q], **rates)
    x = p.detach().clone()
    for t in range(1, 31):
        p.grad = q.grad = g.normal_()
        ours.step()
        theirs.step()
        m, v = (theirs.state[q][name] for name in ("exp_avg", "exp_avg_sq"))
        assert torch.equal(ours.state[p]["exp_avg"], m) and torch.equal(ours.state[p]["exp_avg_sq"], v)
        denominator = (v.double().sqrt().float() / (1 - 0.95**t) ** 0.5).add_(1e-6)
        x.mul_(1 - 0.01 * 0.3).addcdiv_(m, denominator, value=-0.01 / (1 - 0.8**t))
        if OWNERS["adamw_"]["CPU"] != "reference":
            assert torch.equal(p, x)
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.torch_fuses
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_that_adapts_nothing_is_bit_equal_to_sgd(nesterov):
    ours, _ = run(partial(LARS, lr=0.1, weight_decay=0.05, adapt=False, nesterov=nesterov))
    sgd, _ = run(partial(torch.optim.SGD, lr=0.1, weight_decay=0.05, momentum=0.9, nesterov=nesterov))
    assert all(map(torch.equal, ours, sgd))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["moco_v3", "larc, timm", "paper", "AdamW, other rates"])
def test_other_dtypes_are_no_worse_than_the_peers(name, dtype):
    ours, peer = PAIRS[name][0], PAIRS[name][1]()
    (params, _), (theirs, _), (truth, _) = (run(call, 20, d) for call, d in ((ours, dtype), (peer, dtype), (peer, torch.float64)))
    for i, values in enumerate(zip(params, theirs, truth, strict=True)):
        if params[i].numel() != 1:  # the error of one number is luck
            assert_no_worse(f"{name} params[{i}]", *values, dtype)
