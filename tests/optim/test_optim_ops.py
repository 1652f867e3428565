"""The ops lars_ and adamw_: copies in the same pass, dtypes, layouts, norms, refusals."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl.functional import ema_update_
from fastssl.momentum import EMA, cosine_schedule, update_momentum
from fastssl.ops.adamw import adamw_
from fastssl.ops.lars import lars_
from fastssl.optim import LARS, AdamW
from tests.support.optim_common import FORMS, SHAPES, clones, equal, lists


def lars_step(params, grads, mu, v, **options):
    lars_(params, grads, mu, **({"lr": 0.5, "weight_decay": 0.01} | options))


def adamw_step(params, grads, m, v, **options):
    for t in v:
        t.abs_()
    adamw_(params, grads, m, v, **({"lr": 0.5, "step": 3} | options))


STEPS = {form: partial(lars_step, form=form) for form in FORMS} | {"adamw": adamw_step}
each_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


@pytest.mark.parametrize("copy_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_step
def test_average_and_shadows_equal_the_separate_calls(step, dtype, copy_dtype, isa):
    apart = lists(4, dtype=dtype)
    together = clones(*apart)
    (ema,) = lists(1, seed=4)
    shadow, ema_shadow = ([torch.empty_like(t, dtype=copy_dtype) for t in ema] for _ in range(2))
    folded = clones(ema, shadow, ema_shadow)
    step(*apart)
    ema_update_(ema, apart[0], 0.9, shadow=ema_shadow)
    for s, p in zip(shadow, apart[0], strict=True):
        s.copy_(p)
    step(*together, ema=folded[0], shadow=folded[1], ema_shadow=folded[2], ema_momentum=0.9)
    assert equal(apart, together) and equal([ema, shadow, ema_shadow], folded)


@each_step
def test_mixed_dtypes_are_computed_in_float32_and_rounded_once(step, isa):
    kinds = [torch.bfloat16, torch.float32, torch.float16, torch.bfloat16]
    mixed = [[t.to(kind) for t in tensors] for kind, tensors in zip(kinds, lists(4), strict=True)]
    mixed[3] = [t.abs() for t in mixed[3]]
    wide = [[t.float() for t in tensors] for tensors in mixed]
    grads = mixed[1]
    step(*mixed)
    step(*wide)
    assert mixed[1] is grads
    assert equal(mixed, [[t.to(kind) for t in tensors] for kind, tensors in zip(kinds, wide, strict=True)])


def strided(t):
    """The same values with gaps between them, where there is more than one."""
    return t if t.dim() == 0 else torch.stack([t, torch.full_like(t, math.nan)], -1)[..., 0]


def reordered(t):
    if t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.t().contiguous().t() if t.dim() == 2 else t


@pytest.mark.parametrize("how", [strided, reordered])
@pytest.mark.parametrize("which", ["all", "params", "grads"])
@each_step
def test_layouts(step, how, which):
    plain = lists(4)
    other = clones(*plain)
    for i in {"all": range(4), "params": [0], "grads": [1]}[which]:
        other[i] = [how(t) for t in other[i]]
    step(*plain)
    step(*other)
    for a, b in zip(plain, other, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(y, x, rtol=1e-6, atol=0)  # norms add in memory order


@each_step
def test_same_bits_for_any_number_of_threads(step, isa):
    before, results = torch.get_num_threads(), []
    shapes = [(700, 501), (33,), (1 << 17,)]
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        state = lists(4, shapes=shapes)
        step(*state)
        results.append(state)
    torch.set_num_threads(before)
    assert all(equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@each_step
def test_what_is_not_finite_reaches_the_parameter_and_no_other(step, bad, isa):
    state = lists(4)
    clean = clones(*state)
    state[1][0][5, 7] = bad
    step(*state)
    step(*clean)
    assert not state[0][0][5, 7].isfinite()
    assert equal([x[1:] for x in state], [x[1:] for x in clean])


def one_step(form, p, g, **options):
    """A first step of one tensor -> how far it moves."""
    p, mu = torch.as_tensor(p, dtype=torch.float32), torch.zeros(2)
    before = p.clone()
    lars_(p, torch.as_tensor(g, dtype=torch.float32), mu, **({"lr": 0.5, "weight_decay": 0.1, "form": form} | options))
    return (before - p).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_or_gradient_of_zeros_is_not_adapted(form):
    assert one_step(form, [0.0, 0.0], [3.0, 4.0]) == [1.5, 2.0]
    assert one_step(form, [0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]
    still = one_step(form, [3.0, 4.0], [0.0, 0.0])
    # |d| is not 0 in moco_v3; LARC leaves the tensor alone; the paper's form decays it
    want = {"moco_v3": [0.001 * 0.5 * 3, 0.001 * 0.5 * 4], "larc": [0.0, 0.0], "paper": [0.5 * 0.1 * 3, 0.5 * 0.1 * 4]}[form]
    assert still == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("size", [1e25, 1e-25])
@pytest.mark.parametrize("form", FORMS)
def test_norms_whose_squares_leave_float32(form, size, isa):
    """q g is eta |p| g / |g|, whatever the size of g."""
    moved = one_step(form, [3.0, 4.0], [6 * size, 8 * size], weight_decay=0.0, eps=0.0, lr=1.0)
    assert moved == pytest.approx([0.001 * 5 * 0.6, 0.001 * 5 * 0.8], rel=1e-3)


def test_the_three_forms_differ_as_published():
    """Where decay enters the norm, and what a change of the rate does to the momentum."""
    p, g = [3.0, 4.0], [0.0, 5.0]
    q = {"moco_v3": 0.005 / math.hypot(0.3, 5.4), "larc": 0.005 / 5.5, "paper": 0.005 / 5.5}
    for form in FORMS:
        assert one_step(form, p, g) == pytest.approx([0.5 * q[form] * 0.3, 0.5 * q[form] * 5.4], rel=1e-3)
    state = {form: [torch.tensor([3.0, 4.0]), torch.zeros(2)] for form in FORMS}
    for form, (x, mu) in state.items():
        lars_(x, torch.ones(2), mu, lr=1.0, form=form)
        lars_(x, torch.zeros(2), mu, lr=0.0, form=form)
    assert torch.equal(state["larc"][0], torch.tensor([3.0, 4.0]) - 0.005 / math.sqrt(2))
    assert (state["paper"][0] < state["larc"][0]).all()  # its momentum remembers the old rate


@each_step
def test_a_scalar_tensor_is_the_number(step):
    plain, tensor = lists(4), lists(4)
    (ema,) = lists(1, seed=4)
    other = clones(ema)[0]
    step(*plain, lr=0.25, ema=ema, ema_momentum=0.9)
    step(*tensor, lr=torch.tensor(0.25), ema=other, ema_momentum=torch.tensor(0.9, dtype=torch.float64))
    assert equal([*plain, ema], [*tensor, other])


@pytest.mark.parametrize("step", [STEPS["paper"], STEPS["adamw"]], ids=["paper", "adamw"])
def test_compiled_whole(step):
    torch._dynamo.reset()
    plain, compiled = lists(4, shapes=SHAPES[:2]), lists(4, shapes=SHAPES[:2])
    (ema,) = lists(1, seed=4, shapes=SHAPES[:2])
    other = clones(ema)[0]
    step(*plain, lr=0.25, ema=ema, ema_momentum=0.9)
    call = torch.compile(lambda lr, m: step(*compiled, lr=lr, ema=other, ema_momentum=m), fullgraph=True, backend="aot_eager")
    call(torch.tensor(0.25), torch.tensor(0.9, dtype=torch.float64))
    assert equal([*plain, ema], [*compiled, other])


def test_opcheck():
    p, g, m, v, ema, shadow = lists(6, shapes=[(5, 3), (4,)])
    v = [t.abs() for t in v]
    scalar = torch.tensor(0.9)
    ops = torch.ops.fastssl
    lars = (0.9, [0.1, 0.0], 0.001, 1e-8, 1, [1, 0], False, False)
    torch.library.opcheck(ops.lars_.default, (p, g, m, 0.5, None, *lars, ema, 0.9, None, shadow, []))
    torch.library.opcheck(ops.lars_.default, (p, g, m, 0.0, scalar, *lars, [], 0.9, None, [], []))
    adamw = (3.0, None, 0.5, None, 0.9, 0.999, 1e-8, [0.1, 0.0])
    torch.library.opcheck(ops.adamw_.default, (p, g, m, v, *adamw, ema, 0.9, None, shadow, []))


X, G, M, V = (torch.ones(2, 3) for _ in range(4))
LEAF = torch.ones(2, 3, requires_grad=True)
ROW = torch.ones(3)
BAD = {
    "count": (ValueError, r"lars_: grads must hold 1 tensors, as many as params, got 2", lambda: lars_(X, [G, G], M, lr=1.0)),
    "no tensors": (ValueError, "lars_: params must hold at least one tensor", lambda: lars_([], [], [], lr=1.0)),
    "no tensor": (
        TypeError,
        r"lars_: grads must be a tensor or a sequence.*NoneType",
        lambda: lars_(X, None, M, lr=1.0),
    ),
    "array": (TypeError, "lars_: momenta must be a tensor or a sequence.*ndarray", lambda: lars_(X, G, np.array(0.5), lr=1.0)),
    "no tensor inside": (TypeError, r"lars_: grads\[0\] must be a tensor, got NoneType", lambda: lars_(X, [None], M, lr=1.0)),
    "shape": (ValueError, r"params\[0\] and grads\[0\] must have the same shape, got \(2, 3\)", lambda: lars_(X, G[0], M, lr=1.0)),
    "dtype": (TypeError, r"lars_: grads\[0\] must be float32", lambda: lars_(X, G.int(), M, lr=1.0)),
    "float64": (TypeError, "float64 stands with float64 only", lambda: lars_(X, G.double(), M, lr=1.0)),
    "device": (ValueError, "all tensors must be on one device", lambda: lars_(X, G.to("meta"), M, lr=1.0)),
    "sparse": (TypeError, r"grads\[0\] must be a dense tensor", lambda: lars_(X, G.to_sparse(), M, lr=1.0)),
    "tied": (ValueError, "share memory; pass tied tensors once", lambda: lars_([X, X], [G, G], [M, V], lr=1.0)),
    "expanded": (
        ValueError,
        r"lars_: params\[1\] must not be expanded",
        lambda: lars_([X, ROW.expand(2, 3)], [G, G], [M, V], lr=1.0),
    ),
    "expanded shadow": (
        ValueError,
        "adamw_: shadow.* must not be expanded",
        lambda: adamw_(X, G, M, V, step=1, shadow=ROW.expand(2, 3)),
    ),
    "negated": (TypeError, r"momenta\[0\] must not be a lazily negated", lambda: lars_(X, G, torch._neg_view(M), lr=1.0)),
    "lr sparse": (TypeError, "lars_: lr must be a dense tensor", lambda: lars_(X, G, M, lr=torch.ones(1).to_sparse())),
    "lr large": (ValueError, "lars_: lr must be finite", lambda: lars_(X, G, M, lr=10**400)),
    "step large": (ValueError, "adamw_: step must be", lambda: adamw_(X, G, M, V, step=10**400)),
    "decay large": (ValueError, "weight_decay must be finite", lambda: lars_(X, G, M, lr=1.0, weight_decay=10**400)),
    "beta large": (ValueError, "beta1 must be in", lambda: adamw_(X, G, M, V, step=1, betas=(10**400, 0.9))),
    "dampening": (NotImplementedError, "LARS: dampening is not supported.*got 0.1", lambda: LARS([LEAF], 1.0, dampening=0.1)),
    "maximize": (NotImplementedError, "LARS: maximize is not supported", lambda: LARS([{"params": [LEAF], "maximize": True}], 1.0)),
    "differentiable": (NotImplementedError, "AdamW: differentiable", lambda: AdamW([LEAF], differentiable=True)),
    "foreach": (TypeError, "AdamW: foreach must be True or False, got str", lambda: AdamW([LEAF], foreach="yes")),
    "lightly's order": (TypeError, "LARS.__init__.. takes 3 positional arguments", lambda: LARS([LEAF], 0.1, 0.9, 0.0, 1e-2)),
    "tied state": (ValueError, "share memory", lambda: adamw_(X, G, M, M, step=1)),
    "lr": (ValueError, "lars_: lr must be finite and at least 0, got nan", lambda: lars_(X, G, M, lr=math.nan)),
    "lr below 0": (ValueError, "lars_: lr must be finite and at least 0, got -1", lambda: lars_(X, G, M, lr=-1)),
    "lr tensor": (ValueError, "lr must be a number or a one-element float tensor", lambda: lars_(X, G, M, lr=torch.ones(2))),
    "lr tensor value": (ValueError, "lr must be finite", lambda: lars_(X, G, M, lr=torch.tensor(math.inf))),
    "lr type": (TypeError, "lars_: lr must be a number", lambda: lars_(X, G, M, lr="0.1")),
    "momentum": (ValueError, r"lars_: momentum must be in \[0, 1\), got 1", lambda: lars_(X, G, M, lr=1.0, momentum=1.0)),
    "decay": (
        ValueError,
        "weight_decay must be finite in torch.float32 and at least 0, got -1",
        lambda: lars_(X, G, M, lr=1.0, weight_decay=-1),
    ),
    "decays": (ValueError, "weight_decay must be one value or 1", lambda: lars_(X, G, M, lr=1.0, weight_decay=[0.1, 0.1])),
    "decay type": (TypeError, "weight_decay must be a number", lambda: lars_(X, G, M, lr=1.0, weight_decay=[True])),
    "adapt": (TypeError, "lars_: adapt must be True or False", lambda: lars_(X, G, M, lr=1.0, adapt=[1])),
    "eta": (ValueError, "trust_coefficient must be at least 0", lambda: lars_(X, G, M, lr=1.0, trust_coefficient=-1)),
    "eps": (ValueError, "lars_: eps must be at least 0, got nan", lambda: lars_(X, G, M, lr=1.0, eps=math.nan)),
    "form": (ValueError, "lars_: form must be one of 'moco_v3', 'larc', 'paper'", lambda: lars_(X, G, M, lr=1.0, form="lars")),
    "clip": (ValueError, "lars_: clip needs form 'larc', got 'paper'", lambda: lars_(X, G, M, lr=1.0, form="paper", clip=True)),
    "nesterov": (ValueError, "nesterov needs momentum above 0", lambda: lars_(X, G, M, lr=1.0, momentum=0, nesterov=True)),
    "nesterov type": (TypeError, "nesterov must be True or False, got int", lambda: lars_(X, G, M, lr=1.0, nesterov=1)),
    "ema shape": (ValueError, r"params\[0\] and ema\[0\] must have the same shape", lambda: lars_(X, G, M, lr=1.0, ema=V[0])),
    "ema momentum": (ValueError, r"ema_momentum must be in \[0, 1\]", lambda: lars_(X, G, M, lr=1.0, ema=V, ema_momentum=2)),
    "ema shadow": (ValueError, "ema_shadow must be given together with ema", lambda: lars_(X, G, M, lr=1.0, ema_shadow=V)),
    "ema is the gradient": (ValueError, "share memory", lambda: lars_(X, G, M, lr=1.0, ema=X)),
    "step": (ValueError, "adamw_: step must be at least 1, got 0", lambda: adamw_(X, G, M, V, step=0)),
    "step type": (TypeError, "adamw_: step must be an integer", lambda: adamw_(X, G, M, V, step=1.5)),
    "step tensor": (ValueError, "step must be an integer or a one-element tensor", lambda: adamw_(X, G, M, V, step=X)),
    "betas": (ValueError, r"adamw_: beta2 must be in \[0, 1\), got 1", lambda: adamw_(X, G, M, V, step=1, betas=(0.9, 1.0))),
    "beta": (TypeError, "betas must be two numbers", lambda: adamw_(X, G, M, V, step=1, betas=0.9)),
    "adam eps": (ValueError, "adamw_: eps must be at least 0", lambda: adamw_(X, G, M, V, step=1, eps=-1e-8)),
    "LARS lr": (ValueError, "LARS: lr must be finite and at least 0, got -1", lambda: LARS([LEAF], -1)),
    "LARS form": (ValueError, "LARS: form must be one of", lambda: LARS([LEAF], 1.0, form="timm")),
    "LARS adapt": (ValueError, "LARS: adapt must be one of None, True, False", lambda: LARS([LEAF], 1.0, adapt="auto")),
    "LARS group": (ValueError, "LARS: momentum must be in", lambda: LARS([{"params": [LEAF], "momentum": 2.0}], 1.0)),
    "no params": (ValueError, "AdamW: params must be parameters or groups of them: .*empty", lambda: AdamW([])),
    "params": (TypeError, "LARS: params must be parameters or groups of them: .*str", lambda: LARS("weights", 1.0)),
    "ema number": (TypeError, "LARS: ema must be a list of tensors.*got float", lambda: LARS([LEAF], 1.0, ema=0.9)),
    "ema count": (
        ValueError,
        "LARS: ema must hold 1 tensors, one for each param.*, got 2",
        lambda: LARS([LEAF], 1.0, ema=[X, X]),
    ),
    "ema type": (TypeError, r"LARS: ema\[0\] must be a tensor, got NoneType", lambda: LARS([LEAF], 1.0, ema=[None])),
    "ema shapes": (ValueError, r"AdamW: ema\[0\] must have the shape of its parameter", lambda: AdamW([LEAF], ema=[X[0]])),
    "lone ema shadow": (ValueError, "AdamW: ema_shadow must be given together with ema", lambda: AdamW([LEAF], ema_shadow=[X])),
    "AdamW decay": (
        ValueError,
        "AdamW: weight_decay must be finite in torch.float32 and at least 0",
        lambda: AdamW([LEAF], weight_decay=-1),
    ),
    "AdamW ema": (ValueError, r"AdamW: ema_momentum must be in \[0, 1\]", lambda: AdamW([LEAF], ema_momentum=1.5)),
    "amsgrad": (NotImplementedError, "AdamW: amsgrad is not supported", lambda: AdamW([{"params": [LEAF], "amsgrad": True}])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words_and_changes_nothing(name):
    error, words, call = BAD[name]
    with pytest.raises(error, match=words):
        call()
    assert all(torch.equal(t, torch.ones(2, 3)) and t._version == 0 for t in (X, G, M, V))


def test_autograd_sees_the_change():
    p = torch.ones(3, requires_grad=True)
    loss = (p * p).sum()
    lars_(p, torch.ones(3), torch.zeros(3), lr=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Local(torch.Tensor):
    """As much of a DTensor as the ops look at."""

    def to_local(self):
        return self.as_subclass(torch.Tensor)


def as_local(t, replicated):
    t = t.as_subclass(Local)
    t.placements = (SimpleNamespace(is_replicate=lambda: replicated),)
    return t


def test_lars_takes_replicated_tensors_and_refuses_shards():
    shard, whole = as_local(torch.ones(3), False), as_local(torch.ones(3), True)
    with pytest.raises(NotImplementedError, match="lars_: params must be whole on every device, got a DTensor"):
        lars_(shard, torch.ones(3), torch.ones(3), lr=0.1)
    adamw_(shard, torch.ones(3), torch.zeros(3), torch.zeros(3), step=1)
    plain = torch.ones(3)
    for p in (plain, whole):
        lars_(p, torch.ones(3), torch.ones(3), lr=0.1)
    assert torch.equal(plain, whole.to_local()) and not torch.equal(plain, torch.ones(3))


@each_step
def test_fake_tensors_are_no_shared_memory(step):
    with FakeTensorMode():
        step(*lists(4))


def everything_once(state, models, momentum, rate, step):
    """One call of each update, with a momentum and a rate of this step."""
    (p, g, m, v, e), (model, teacher) = state, models
    lars_(p, g, m, lr=rate, ema=e, ema_momentum=momentum)
    adamw_(p, g, m, v, step=step, lr=rate)
    ema_update_(p, g, cosine_schedule(step, 100), rounding="stochastic", seed=step)
    update_momentum(model, teacher.module, momentum)
    teacher.momentum = momentum
    teacher.update(model)


def test_rates_that_follow_a_schedule_make_at_most_two_graphs():
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(everything_once, backend="aot_eager", fullgraph=True)
    eager, traced = ((lists(5, shapes=[(3, 2)]), (torch.nn.Linear(2, 3), EMA(torch.nn.Linear(2, 3)))) for _ in range(2))
    for ours, theirs in zip(traced[1], eager[1], strict=True):
        ours.load_state_dict(theirs.state_dict())
    for step in range(1, 5):
        for call, (state, models) in ((everything_once, eager), (compiled, traced)):
            state[3][0].abs_()
            call(state, models, 0.9 + step / 100, 0.1 / step, step)
    assert counters["stats"]["unique_graphs"] <= 2
    assert equal(eager[0], traced[0]) and equal([[*eager[1][1].parameters()]], [[*traced[1][1].parameters()]])
