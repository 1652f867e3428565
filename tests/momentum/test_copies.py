"""Averages of models that are hard to copy: made in inference mode, wrapped, with a history, expanded; teachers that are given."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastssl.momentum import EMA
from fastssl.momentum._copies import rename_wrapped
from tests.support.momentum_models import KINDS, same, small, values, wander

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", ["all", "model only", "average only"])
def test_what_is_made_in_inference_mode_is_averaged_outside(kind, inside):
    model = small()
    with torch.inference_mode(inside != "average only"):
        made = copy.deepcopy(model)
        early = EMA(made, 0.5, **KINDS[kind]) if inside == "all" else None
    with torch.inference_mode(inside == "average only"):
        ema = early or EMA(made, 0.5, **KINDS[kind])
        ema.float() if kind == "float32" else None
    twin = EMA(model, 0.5, **KINDS[kind])
    wander(model)
    ema.update(model)
    with torch.inference_mode():
        twin.update(model)
    assert same(ema, twin) and not any(t.is_inference() for t in (*ema.parameters(), *ema.buffers()))


def with_old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        head = nn.utils.weight_norm(nn.Linear(3, 2, bias=False))
    head.weight_g.data.fill_(1)
    return nn.Sequential(nn.Linear(4, 3), head)


def with_cached_output() -> nn.Module:
    model = small()
    model.cache = {"last": [model(torch.randn(3, 4))]}
    return model


@pytest.mark.parametrize("make", [with_old_weight_norm, with_cached_output])
def test_modules_that_keep_tensors_with_a_history(make):
    model, x = make(), torch.randn(3, 4)
    model(x)
    ema = EMA(model, 0.0)
    wander(model)
    ema.update(model)
    assert torch.equal(ema(x), model(x)) and not ema(x).requires_grad
    again = copy.deepcopy(ema)
    ema.update(model), again.update(model)
    assert same(again, ema)


def test_a_model_that_cannot_be_copied_is_refused_with_a_way_out():
    model = small()
    model.lines = (line for line in "ab")
    with pytest.raises(ValueError, match=r"EMA: model must be one that copy.deepcopy takes, got Sequential.*teacher="):
        EMA(model)
    teacher = small()
    teacher.load_state_dict(model.state_dict())
    ema = EMA(model, 0.5, teacher=teacher)
    wander(model)
    ema.update(model)
    assert ema.module is teacher and not any(p.requires_grad for p in teacher.parameters())


def test_a_given_teacher_keeps_its_values_and_its_mode():
    model, teacher = small(), small().eval()
    before = values(teacher)
    ema = EMA(model, 0.25, teacher=nn.DataParallel(teacher))
    assert ema.module is teacher and same(before, teacher) and not ema.training
    ema.update(model)
    want = [torch.lerp(e, p, 0.75) for e, p in zip(before, model.parameters(), strict=False)]
    assert same(want, list(teacher.parameters())) and torch.equal(teacher[1].running_var, model[1].running_var)
    with pytest.raises(ValueError, match=r"EMA: teacher must share no tensor with model, got one whose '0.weight'"):
        EMA(model, teacher=model)
    with pytest.raises(ValueError, match=r"EMA: the model must have as many buffers"):
        EMA(model, teacher=nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)))
    with pytest.raises(TypeError, match=r"EMA: teacher must be a torch.nn.Module, got str"):
        EMA(model, teacher="student")


WRAPPERS = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,  # as DistributedDataParallel, which needs processes
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "the other way": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_of_a_wrapped_model_has_the_models_names(wrapper, kind):
    model = small()
    wrapped = WRAPPERS[wrapper](model)
    ema, bare = EMA(wrapped, 0.5, **KINDS[kind]), EMA(model, 0.5, **KINDS[kind])
    wander(model)
    ema.update(wrapped)
    bare.update(model)
    assert list(ema.state_dict()) == list(bare.state_dict()) and same(ema, bare)
    ema.update(model)
    inner = {"compiled": "_orig_mod.", "parallel": "module.", "both": "_orig_mod.module."}.get(wrapper, "module._orig_mod.")
    older = {}
    for key, value in ema.state_dict().items():  # as it was saved before
        tree, name = key.split(".", 1)
        older[f"{tree}.{inner}{name}"] = value.clone()
    bare.load_state_dict(older)
    assert same(ema, bare)


def test_only_wrappers_are_renamed():
    state = {"module.module.a": 1, "module.other.a": 2, "module._orig_mod.module.b": 3, "module.c": 4, "module.module.c": 5}
    rename_wrapped(state, "module.", ["a", "module.b", "c", "module.d", "d"])
    assert state == {"module.a": 1, "module.other.a": 2, "module.module.b": 3, "module.c": 4, "module.module.c": 5}


@pytest.mark.parametrize("rule", ["copy", "ema", "skip"])
def test_an_expanded_buffer(rule):
    model = small()
    model.register_buffer("scale", torch.ones(1).expand(3))
    ema = EMA(model, 0.5, buffers=rule)
    model.scale = torch.full((1,), 3.0).expand(3)
    ema.update(model)
    assert ema.module.scale.tolist() == [{"copy": 3.0, "ema": 2.0, "skip": 1.0}[rule]] * 3
    ema.module.scale = torch.zeros(1).expand(3)
    before = values(ema)
    wander(model[0])
    if rule != "skip":
        with pytest.raises(ValueError, match=r"EMA.update: .*must not be expanded"):
            ema.update(model)
        assert same(before, values(ema))


def test_a_sparse_buffer_is_copied():
    model = small()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    ema = EMA(model, 0.5)
    model.graph = torch.ones(3, 3).to_sparse()
    ema.update(model)
    assert torch.equal(ema.module.graph.to_dense(), torch.ones(3, 3))
