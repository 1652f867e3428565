"""The optimizers LARS and AdamW: groups, state, averages, schedules."""

import copy
import io
import math
from functools import partial

import pytest
import torch

from fastssl.optim import LARS, AdamW
from tests.support.optim_common import FORMS, LARS_RATES, assert_all_close, equal, parameters, timm

MAKERS = {form: partial(LARS, form=form, **LARS_RATES) for form in FORMS} | {"adamw": partial(AdamW, lr=0.01)}
each_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of the fastssl ops that run."""

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "fastssl" in str(func):
            self.seen.append(str(func).split(".")[1])
        return func(*args, **(kwargs or {}))


def take(optimizer, params, steps, seed=5, skip=()):
    """Steps with random gradients, none for the positions in ``skip``."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for i, p in enumerate(params):
            noise = torch.randn(p.shape, generator=generator)
            p.grad = None if i in skip else noise.to(p.dtype)
        optimizer.step()


def tensors_of(optimizer, params):
    state = [[v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)] for p in params]
    return [[p.detach() for p in params], *state]


@each_optimizer
def test_all_groups_and_averages_in_one_call(make):
    params, ema = parameters(), [p.detach().clone() for p in parameters()]
    groups = [{"params": params[:2], "weight_decay": 0.0}, {"params": params[2:]}]
    optimizer = make(groups, ema=ema, shadow=[e.bfloat16() for e in ema])
    with Calls() as calls:
        take(optimizer, params, 3)
    assert calls.seen == [("adamw_" if isinstance(optimizer, AdamW) else "lars_")] * 3
    optimizer.param_groups[0]["lr"] = 0.001
    with Calls() as calls:
        take(optimizer, params, 1)
    assert len(calls.seen) == 2
    apart = parameters()
    each = [make(apart[:2], weight_decay=0.0), make(apart[2:])]
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        for p in apart:
            p.grad = torch.randn(p.shape, generator=generator)
        for one in each:
            one.step()
    each[0].param_groups[0]["lr"] = 0.001
    generator.manual_seed(5)
    for p in apart:
        p.grad = torch.randn(p.shape, generator=generator)
    for one in each:
        one.step()
    assert all(map(torch.equal, params, apart))


@pytest.mark.parametrize("how", ["state dict", "saved state dict", "deepcopy", "pickle"])
@each_optimizer
def test_continuation_is_bit_equal(make, how):
    def start():
        params = parameters()
        optimizer = make(params, ema=[p.detach().clone() for p in params])
        optimizer.ema_momentum = 0.7
        take(optimizer, params, 3)
        take(optimizer, params, 1, skip=(1,))
        return optimizer, params

    (optimizer, params), (other, others) = start(), start()
    if how.endswith("state dict"):
        state = optimizer.state_dict()
        if how.startswith("saved"):
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        fresh = make(others, ema=list(other._copies["ema"].values()))
        fresh.ema_momentum = 0.7
        fresh.load_state_dict(copy.deepcopy(state))
    else:
        if how == "deepcopy":
            fresh = copy.deepcopy(other)
        else:
            file = io.BytesIO()
            torch.save(other, file)
            file.seek(0)
            fresh = torch.load(file, weights_only=False)
        others = fresh.param_groups[0]["params"]
    take(optimizer, params, 3, seed=6)
    take(fresh, others, 3, seed=6)
    assert equal(tensors_of(optimizer, params), tensors_of(fresh, others))
    assert all(torch.equal(optimizer._copies["ema"][p], fresh._copies["ema"][q]) for p, q in zip(params, others, strict=True))


def test_state_dicts_go_to_torch_adamw_and_back():
    ours, theirs = parameters(), parameters()
    a, b = AdamW(ours, lr=0.01, betas=(0.8, 0.9)), torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.9))
    for _ in range(2):
        take(a, ours, 3, skip=(2,))
        take(b, theirs, 3, skip=(2,))
        a_state, b_state = copy.deepcopy(a.state_dict()), copy.deepcopy(b.state_dict())
        a.load_state_dict(b_state)
        b.load_state_dict(a_state)
    with Calls() as calls:
        take(a, ours, 1)
    take(b, theirs, 1)
    assert calls.seen == ["adamw_"] * 2  # positions that have taken 6 steps and 0
    assert_all_close(ours, theirs)
    amsgrad = torch.optim.AdamW(theirs, amsgrad=True)
    with pytest.raises(NotImplementedError, match="AdamW: amsgrad is not supported"):
        a.load_state_dict(amsgrad.state_dict())


@each_optimizer
def test_without_gradient_a_parameter_stays_and_its_average_moves(make):
    params, ema = parameters(), [torch.zeros_like(p) for p in parameters()]
    half = [e.bfloat16() for e in ema]
    optimizer = make(params, ema=ema, ema_momentum=0.5, ema_shadow=half)
    before = params[1].detach().clone()
    take(optimizer, params, 2, skip=(1,))
    assert torch.equal(params[1], before) and params[1] not in optimizer.state
    assert torch.equal(ema[1], 0.75 * before) and torch.equal(half[1], ema[1].bfloat16())
    for p in params:
        p.grad = None
    optimizer.step()
    torch.testing.assert_close(ema[1], 0.875 * before)


def test_step_counts_that_differ_are_torch_s():
    ours, theirs = parameters(), parameters()
    a, b = AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    for steps, skip in ((2, (0,)), (1, (1, 2)), (3, ()), (1, (0, 1, 2, 3, 4, 5)), (1, (4,))):
        take(a, ours, steps, skip=skip)
        take(b, theirs, steps, skip=skip)
    assert_all_close(ours, theirs)
    assert [a.state[p]["step"].item() for p in ours] == [b.state[p]["step"].item() for p in theirs]


def test_groups_of_different_rates_count_their_own_steps():
    ours, theirs = parameters(), parameters()
    a, b = (
        kind([{"params": p[:3], "lr": 0.1}, {"params": p[3:]}], lr=0.01) for kind, p in ((AdamW, ours), (torch.optim.AdamW, theirs))
    )
    for skip in ((), (1,)):
        take(a, ours, 3, skip=skip)
        take(b, theirs, 3, skip=skip)
    a.load_state_dict(copy.deepcopy(a.state_dict()))  # joins equal counts of both groups
    take(a, ours, 3)
    take(b, theirs, 3)
    assert_all_close(ours, theirs)


@each_optimizer
def test_a_rate_tensor_and_a_scheduler(make):
    first, second = parameters(), parameters()
    a, b = make(first), make(second, lr=torch.tensor(make.keywords["lr"], dtype=torch.float64))
    for one, params in ((a, first), (b, second)):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(one, 4)
        for seed in range(4):
            take(one, params, 1, seed=seed)
            schedule.step()
    assert isinstance(b.param_groups[0]["lr"], torch.Tensor) and all(map(torch.equal, first, second))


def test_capturable_counts_on_the_device_of_the_parameters():
    first, second = parameters(), parameters()
    take(AdamW(first), first, 3)
    optimizer = AdamW(second, capturable=True)
    take(optimizer, second, 3)
    assert optimizer.state[second[0]]["step"].device == second[0].device and all(map(torch.equal, first, second))


@each_optimizer
def test_closure_and_zero_grad(make):
    model = torch.nn.Linear(4, 3)
    optimizer = make(model.parameters())
    x = torch.randn(8, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    optimizer.zero_grad()
    assert model.weight.grad is None and optimizer.step() is None


@each_optimizer
def test_a_refused_step_changes_nothing(make):
    params = parameters()
    optimizer = make(params)
    take(optimizer, params, 2)
    before = copy.deepcopy(tensors_of(optimizer, params))
    rate = optimizer.param_groups[0]["lr"]
    for wrong in (math.nan, -1.0, torch.ones(2)):
        optimizer.param_groups[0]["lr"] = wrong
        with pytest.raises(ValueError, match="lr must be"):
            optimizer.step()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.ema_momentum = math.nan
    with pytest.raises(ValueError, match="ema_momentum must be in"):
        optimizer.step()
    optimizer.ema_momentum = 0.5
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(TypeError, match=r"gradients must be dense tensors, got torch\.sparse_coo"):
        optimizer.step()
    assert equal(tensors_of(optimizer, params), before)


@each_optimizer
def test_groups_are_added_but_not_where_averages_are_kept(make):
    params = parameters()
    optimizer = make(params[:2])
    optimizer.add_param_group({"params": params[2:], "weight_decay": 0.1})
    take(optimizer, params, 1)
    assert not torch.equal(params[2], parameters()[2])
    optimizer = make(params[:2], ema=[p.detach().clone() for p in params[:2]])
    with pytest.raises(ValueError, match="no group can be added to an optimizer with ema"):
        optimizer.add_param_group({"params": params[2:]})


def test_a_state_dict_of_timm_is_taken():
    ours, theirs = parameters(), parameters()
    a, b = LARS(ours, form="larc", **LARS_RATES), timm(**LARS_RATES)(theirs)
    take(b, theirs, 3)
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q)
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    take(a, ours, 2)
    take(b, theirs, 2)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@each_optimizer
def test_a_bfloat16_model_follows_its_float32_masters(make):
    model = torch.nn.Linear(6, 5).bfloat16()
    masters = [torch.nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = make(masters, shadow=[p.data for p in model.parameters()])
    for _ in range(3):
        model.zero_grad()
        model(torch.randn(4, 6).bfloat16()).square().sum().backward()
        for master, p in zip(masters, model.parameters(), strict=True):
            master.grad = p.grad.float()
        optimizer.step()
    assert all(torch.equal(m.bfloat16(), p) for m, p in zip(masters, model.parameters(), strict=True))


def test_options_of_torch_that_change_no_step():
    for options in ({"foreach": True}, {"fused": True}, {"foreach": False, "fused": False, "maximize": False, "amsgrad": False}):
        ours, theirs = parameters(), parameters()
        take(AdamW(ours, lr=0.01, **options), ours, 2)
        take(AdamW(theirs, lr=0.01), theirs, 2)
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("make", [*MAKERS.values(), torch.optim.AdamW], ids=[*MAKERS, "torch"])
def test_loading_a_state_adds_no_option(make):
    params = parameters()
    optimizer = make(params) if make is not torch.optim.AdamW else AdamW(params)
    before = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict((make(parameters()) if make is torch.optim.AdamW else optimizer).state_dict())
    extra = {"decoupled_weight_decay"} if make is torch.optim.AdamW else set()
    assert set(optimizer.state_dict()["param_groups"][0]) - extra == set(before[0])
    assert set(copy.deepcopy(optimizer).state_dict()["param_groups"][0]) - extra == set(before[0])


def test_a_state_that_no_adamw_can_have_left_is_refused_whole():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = AdamW(params)
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    for spoil, words in (
        (lambda state: state.update(step=torch.tensor(-3.0)), "a step of at least 0, got -3.0 of parameter 1"),
        (lambda state: state.update(step=math.nan), "a step of at least 0, got nan of parameter 1"),
        (lambda state: state.pop("exp_avg"), "exp_avg of parameter 1"),
    ):
        saved = copy.deepcopy(optimizer.state_dict())
        spoil(saved["state"][1])
        with pytest.raises(ValueError, match=f"AdamW: state_dict must hold {words}"):
            optimizer.load_state_dict(saved)
        assert [state["step"].item() for state in optimizer.state.values()] == [1.0, 1.0]
