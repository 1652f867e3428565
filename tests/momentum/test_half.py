"""Half-precision teachers: float32 masters, stochastic rounding; copies, checkpoints and changes of dtype of every kind of EMA."""

import copy
import math
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastssl.momentum import EMA, update_momentum
from tests.support.momentum_models import KINDS, Net, assign_state, replace_head, same, small, values, wander

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_half_teacher_is_the_rounded_float32_average(dtype):
    """So it moves; half precision averaged as it is hardly does (momentum 0.9999)."""
    torch.manual_seed(1)
    model = small()
    truth = [p.detach().double() for p in model.parameters()]
    start = [t.clone() for t in truth]
    ema, wide = EMA(model, 0.9999, dtype=dtype), EMA(model, 0.9999)
    plain = copy.deepcopy(model).to(dtype)
    goal = copy.deepcopy(model)
    wander(goal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            for e in (ema, wide):
                e.update(goal)
            update_momentum(goal, plain, 0.9999)
    truth = [p.detach().double() + 0.9999**300 * (t - p.detach().double()) for t, p in zip(truth, goal.parameters(), strict=True)]
    assert [p.dtype for p in ema.module.parameters()] == [dtype] * 6 and ema.module[1].running_mean.dtype == dtype
    masters = list(ema.master.buffers())
    assert same(masters, list(wide.module.parameters()))
    assert same([m.to(dtype) for m in masters], list(ema.module.parameters()))
    far = sum(float((t - s).abs().sum()) for t, s in zip(truth, start, strict=True))
    off = sum(float((m.double() - t).abs().sum()) for m, t in zip(masters, truth, strict=True))
    stuck = sum(float((p.detach().double() - t).abs().sum()) for p, t in zip(plain.parameters(), truth, strict=True))
    assert off < 1e-3 * far and stuck > 0.3 * far


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rule", ["copy", "ema"])
def test_a_half_model_has_float32_masters(dtype, rule):
    model = Net().to(dtype)
    ema = EMA(model, 0.9, buffers=rule)
    names = {f"master.{name}" for name, _ in model.named_parameters()}
    names |= {"master.norm.running_mean", "master.norm.running_var", "master.hidden"} if rule == "ema" else set()
    assert {key for key in ema.state_dict() if key.startswith("master.")} == names
    wide = EMA(copy.deepcopy(model).float(), 0.9, buffers=rule)
    for _ in range(3):
        wander(model)
        ema.update(model)
        wide.update(model)
    assert same([t.to(ema_t.dtype) for t, ema_t in zip(values(wide.module), values(ema.module), strict=True)], values(ema.module))


def test_float32_and_half_parameters_in_one_model():
    model = small()
    model[2].to(torch.bfloat16)
    ema, wide = EMA(model, 0.9), EMA(copy.deepcopy(model).float(), 0.9)
    for _ in range(3):
        wander(model)
        ema.update(model)
        wide.update(model)
    assert {name for name, _ in ema.master.named_buffers()} == {"2.weight", "2.bias"}
    assert same([t.to(e.dtype) for t, e in zip(values(wide.module), values(ema.module), strict=True)], values(ema.module))


def test_a_refused_second_launch_leaves_the_first_undone():
    model = small()
    model[2].to(torch.bfloat16)
    ema = EMA(model, 0.9)
    before = values(ema)
    wander(model)
    model[2].double()
    with pytest.raises(TypeError, match="float64 stands with float64 only"):
        ema.update(model)
    assert same(ema, before)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_stochastic_rounding_is_right_on_average_and_differs_from_step_to_step(dtype):
    model = nn.Linear(200, 200, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, 0.999, dtype=dtype, rounding="stochastic", seed=3)
    nn.init.constant_(model.weight, 1.5)
    seen = []
    for _ in range(20):
        ema.update(model)
        seen.append(ema.module.weight.detach().double())
    truth = 1.5 - 0.5 * 0.999**20
    unit = torch.finfo(dtype).eps
    deviation = math.sqrt(20 * unit**2 / 4 / seen[-1].numel())
    assert abs(seen[-1].mean() - truth) < 5 * deviation < 0.2 * (truth - 1)
    steps = [(b - a).flatten() for a, b in pairwise(seen)]
    assert abs(torch.corrcoef(torch.stack(steps)).fill_diagonal_(0)).max() < 0.1
    assert int(ema.steps) == 20 and not list(ema.master.buffers())
    other = EMA(nn.Linear(200, 200, bias=False).to(dtype), 0.999, rounding="stochastic", seed=4)
    other.module.weight.data.fill_(1.0)
    for _ in range(20):
        other.update(model)
    assert not torch.equal(other.module.weight, ema.module.weight)


def saved(ema, model):
    fresh = EMA(model, 0.9, **KINDS[saved.kind])
    fresh.load_state_dict(ema.state_dict())
    return fresh


def assigned(ema, model):
    fresh = EMA(model, 0.9, **KINDS[saved.kind])
    fresh.update(model)
    fresh.load_state_dict(copy.deepcopy(ema.state_dict()), assign=True)
    return fresh


@pytest.mark.parametrize("again", [saved, assigned, lambda e, _: copy.deepcopy(e), lambda e, _: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_continues_with_the_same_bits(kind, again):
    saved.kind = kind
    model = small()
    ema = EMA(model, 0.9, **KINDS[kind])
    for _ in range(3):
        wander(model)
        ema.update(model)
    twin = again(ema, model)
    for _ in range(3):
        wander(model)
        ema.update(model)
        twin.update(model)
    assert ema.state_dict().keys() == twin.state_dict().keys() and same(ema, twin)
    assert same([t.float() for t in ema.module.parameters()], [t.float() for t in twin.module.parameters()])


@pytest.mark.parametrize("kind", ["bfloat16", "stochastic"])
def test_checkpoints_between_precisions(kind):
    model = small()
    wide, half = EMA(model, 0.9, buffers="ema"), EMA(model, 0.9, **KINDS[kind])
    wander(model)
    for e in (wide, half):
        e.update(model)
    fresh = EMA(model, 0.9, buffers="ema")
    fresh.load_state_dict(half.state_dict())
    assert same(fresh.module, wide.module) or kind == "stochastic"
    fresh = EMA(model, 0.9, **KINDS[kind])
    fresh.load_state_dict(wide.state_dict())
    assert same([t.to(torch.bfloat16) for t in wide.module.parameters()], list(fresh.module.parameters()))
    for name, master in fresh.master.named_buffers():
        assert torch.equal(master, wide.module.state_dict()[name])


def test_dtype_can_change_on_the_way():
    model = small()
    ema, wide = EMA(model, 0.99), EMA(model, 0.99)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.bfloat16):
        ema.to(dtype)
        wander(model)
        for e in (ema, wide):
            e.update(model)
        assert all(p.dtype == dtype for p in ema.module.parameters())
        assert same([p.to(dtype) for p in wide.module.parameters()], list(ema.module.parameters()))
    ema.float()
    assert same(list(ema.module.parameters()), list(wide.module.parameters()))


def test_a_teacher_that_became_half_gets_masters():
    model = nn.Linear(4, 3)
    ema = EMA(model, 0.9)
    ema.update(model)
    ema.module.to(torch.bfloat16)
    start = ema.module.weight.float()
    wander(model)
    ema.update(model)
    assert torch.equal(ema.master.weight, torch.lerp(start, model.weight.detach(), 1 - 0.9))


@pytest.mark.parametrize("change", [replace_head, assign_state, wander, lambda m: m.load_state_dict(small().state_dict())])
def test_a_teacher_changed_from_outside_goes_on_from_there(change):
    """Masters too: what someone writes into a half-precision teacher, or puts in its place, is its new average."""
    model = small()
    ema = EMA(model, 0.9, dtype=torch.bfloat16)
    ema.update(model)
    kept = ema.master.get_buffer("0.weight").clone()
    change(ema.module)
    if change is replace_head:
        replace_head(model)
    ema.module.to(torch.bfloat16)
    start = [kept if change is replace_head else ema.module[0].weight.float()]
    start += [p.detach().float() for p in list(ema.module.parameters())[1:]]
    ema.update(model)
    heads = (0, 4, 5) if change is replace_head else range(6)
    for i in heads:
        e, p = list(ema.module.parameters())[i], list(model.parameters())[i]
        assert torch.equal(e, torch.lerp(start[i], p.detach(), 1 - 0.9).to(torch.bfloat16))
    assert same([m.to(torch.bfloat16) for m in ema.master.buffers()], list(ema.module.parameters()))
