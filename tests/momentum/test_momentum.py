"""Moving averages of models: the bits of torch and timm, buffers, changed models, compiled updates, refusals."""

import copy
import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import swa_utils

from fastssl.momentum import EMA, get_ema_multi_avg_fn, update_momentum
from tests.support.momentum_models import KINDS, Net, assign_state, peer, replace_head, same, small, values, wander

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.torch_fuses
def test_bits_of_torchs_averaged_model():
    model = Net()
    ours, torchs = EMA(model, 0.99), swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99))
    hooked = swa_utils.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    wander(model)
    ours.copy_from(model)
    for averaged in (torchs, hooked):
        averaged.update_parameters(model)
    for _ in range(50):
        wander(model)
        ours.update(model)
        for averaged in (torchs, hooked):
            averaged.update_parameters(model)
    assert same(ours.module, torchs.module) and same(hooked.module, torchs.module)
    assert ours.module.count.tolist() == [51, 51, 51] and not same(ours.module, model)


@pytest.mark.torch_fuses
@pytest.mark.parametrize("rule, tied", [("copy", True), ("ema", False)])
def test_bits_of_timms_model_ema(rule, tied):
    """timm averages a tied weight once for each of its names where it averages the buffers too."""
    model = Net(tied)
    ours, timms = (
        EMA(model, 0.99, buffers=rule),
        peer("timm.utils.model_ema").ModelEmaV3(model, 0.99, exclude_buffers=rule == "copy"),
    )
    for _ in range(50):
        wander(model)
        ours.update(model)
        timms.update(model)
    assert same(list(ours.module.state_dict().values()), list(timms.module.state_dict().values()))


@pytest.mark.parametrize("order", ["lerp", "mul_add"])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_update_momentum_is_the_equation_in_place(momentum, order):
    model = Net()
    teacher, ema = copy.deepcopy(model), EMA(model, momentum, order=order, buffers="skip")
    before, objects = values(teacher), list(teacher.parameters())
    wander(model)
    update_momentum(model, teacher, momentum)
    ema.update(model)
    assert all(p is q for p, q in zip(teacher.parameters(), objects, strict=True))
    assert teacher.b.weight is teacher.a.weight and ema.module.b.weight is ema.module.a.weight
    parameters = list(model.parameters())
    for module in (teacher, ema.module):
        for e, old, p in zip(module.parameters(), before, parameters, strict=False):
            torch.testing.assert_close(
                e.double(), momentum * old.double() + (1 - momentum) * p.detach().double(), rtol=1e-6, atol=1e-7
            )
            assert momentum or torch.equal(e, p)
            assert momentum < 1 or torch.equal(e, old)
        assert same(list(module.buffers()), before[len(parameters) :])


def test_update_momentum_is_lightlys():
    theirs = peer("lightly.models.utils").update_momentum
    model = Net()
    ours, lightlys = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(10):
        wander(model)
        update_momentum(model, ours, 0.99)
        theirs(model, lightlys, 0.99)
    for a, b in zip(ours.parameters(), lightlys.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_teacher_that_is_not_contiguous_is_averaged_in_its_memory():
    model = Net()
    ema, plain = EMA(model, 0.9), EMA(model, 0.9)
    memory = torch.zeros(6, 8)
    ema.module.strided.data = memory[:, 1::2].copy_(model.strided.detach())
    wander(model)
    ema.update(model)
    plain.update(model)
    assert same(ema.module, plain.module) and torch.equal(memory[:, 1::2], plain.module.strided) and not memory[:, ::2].any()


@pytest.mark.parametrize("rule", ["copy", "ema", "skip"])
def test_buffers(rule):
    model = Net()
    ema = EMA(model, 0.9, buffers=rule)
    before = {name: t.clone() for name, t in ema.module.named_buffers()}
    wander(model)
    ema.update(model)
    for name, t in ema.module.named_buffers():
        b = dict(model.named_buffers())[name]
        if rule == "skip":
            assert torch.equal(t, before[name])
        elif rule == "copy" or not t.is_floating_point():
            assert torch.equal(t, b)
        else:
            torch.testing.assert_close(t, 0.9 * before[name] + 0.1 * b)
    ema.copy_from(model)
    assert same(ema.module, model)


def test_nan_reaches_the_teacher():
    model = Net()
    ema, half = EMA(model), EMA(model, dtype=torch.bfloat16)
    model.a.weight.data[1, 2] = math.nan
    for e in (ema, half):
        e.update(model)
        assert e.module.a.weight.isnan().nonzero().tolist() == [[1, 2]]


def test_module_is_a_copy_without_gradients_in_the_models_mode():
    model = Net().train()
    model.norm.eval()
    ema = EMA(model)
    assert not any(p.requires_grad for p in ema.parameters()) and model.a.weight.requires_grad
    assert ema.training and ema.module.conv.training and not ema.module.norm.training
    assert [name for name, _ in ema.named_children()] == ["module", "master"]
    assert torch.equal(ema(torch.ones(2, 3, 5, 5)), model(torch.ones(2, 3, 5, 5)))
    assert not EMA(model.eval()).training
    assert set(ema.state_dict()) == {f"module.{key}" for key in model.state_dict()}


def test_momentum_is_a_number_a_scalar_or_one_for_this_call():
    model = Net()
    emas = [EMA(model, m) for m in (0.9, torch.tensor(0.9, dtype=torch.float64), 0.5, 0.5)]
    emas[2].momentum = 0.9
    wander(model)
    for ema, once in zip(emas, (None, None, None, torch.tensor(0.9, dtype=torch.float64)), strict=True):
        ema.update(model, once)
    assert all(same(emas[0].module, ema.module) for ema in emas[1:])
    assert emas[3].momentum == 0.5 and emas[2].momentum == 0.9


CHANGES = {
    "another layer": replace_head,
    "no layer": lambda m: m.pop(2),
    "a layer more": lambda m: m.append(nn.Linear(2, 2)),
    "a layer in a layer": lambda m: m[0].add_module("inner", nn.Linear(2, 2)),
    "a parameter less": lambda m: m[2].register_parameter("bias", None),
    "a new parameter": lambda m: setattr(m[2], "bias", nn.Parameter(torch.randn(2))),
    "a parameter of a leaf": lambda m: m[0].register_parameter("extra", nn.Parameter(torch.randn(3))),
    "data": lambda m: setattr(m[0].weight, "data", torch.randn(5, 4)),
    "a buffer": lambda m: setattr(m[1], "running_mean", torch.randn(5)),
    "dtype": lambda m: m.to(torch.bfloat16),
    "assigned state": assign_state,
}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_noticed(change, kind):
    model = small()
    ema, teacher = EMA(model, 0.9, **KINDS[kind]), copy.deepcopy(model)
    ema.update(model)
    update_momentum(model, teacher, 0.9)
    CHANGES[change](model)
    fitting = [p.shape for p in model.parameters()] == [p.shape for p in teacher.parameters()]
    if not fitting:
        before = values(ema), values(teacher)
        for call in (lambda: ema.update(model), lambda: update_momentum(model, teacher, 0.9), lambda: ema.copy_from(model)):
            with pytest.raises(ValueError, match=r"(EMA.update|update_momentum|EMA.copy_from): .*(2\.|0\.inner|0\.extra|3\.)"):
                call()
        assert same(ema, before[0]) and same(teacher, before[1])
        for m in (ema.module, teacher):
            CHANGES[change](m)
    twin, fresh, expected = copy.deepcopy(ema), copy.deepcopy(model), copy.deepcopy(teacher)
    ema.update(model)
    twin.update(fresh)
    assert same(ema, twin)
    update_momentum(model, teacher, 0.9)
    for e, old, p in zip(teacher.parameters(), expected.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(e, torch.lerp(old, p.to(old.dtype), 0.1))


def test_the_model_is_not_kept_alive():
    model, teacher = small(), small()
    ema = EMA(model)
    ema.update(model)
    update_momentum(model, teacher, 0.9)
    alive = [weakref.ref(t) for t in (model, model[0], model[0].weight)]
    del model
    gc.collect()
    assert [r() for r in alive] == [None] * 3
    other = small()
    ema.update(other)
    assert "model" not in repr(ema) and len(list(ema.parameters())) == 6


def test_a_half_average_warns_once_for_each_teacher():
    model, teacher = small(), small().bfloat16()
    with pytest.warns(UserWarning, match=r"update_momentum: an average in torch.bfloat16 hardly moves.*EMA\(model, dtype="):
        update_momentum(model, teacher, 0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update_momentum(model, teacher, 0.999)
        update_momentum(small(), teacher, 0.999)
        update_momentum(model, small(), 0.999)


def test_averaged_model_with_buffers_copies_integers():
    model = Net()
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ema = EMA(model, 0.9, buffers="ema")
    for step in range(5):
        wander(model)
        averaged.update_parameters(model)
        ema.update(model) if step else ema.copy_from(model)
    assert averaged.module.count.tolist() == [5, 5, 5] and int(averaged.module.norm.num_batches_tracked) == 5
    assert same(ema.module, averaged.module)


def test_averaged_lists_of_mixed_dtypes():
    averaged = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64), torch.ones(1).double()]
    current = [torch.full((3,), 2.0).bfloat16(), torch.full((2,), 2.0), torch.full((2,), 7), torch.tensor([3.0]).double()]
    get_ema_multi_avg_fn(0.5)(averaged, current, 4)
    assert [t.tolist() for t in averaged] == [[1.5] * 3, [1.5] * 2, [7, 7], [2.0]]


def test_integer_parameters_are_copied():
    model = small()
    model.table = nn.Parameter(torch.arange(4), requires_grad=False)
    ema, teacher = EMA(model, 0.9), copy.deepcopy(model)
    model.table.add_(3)
    ema.update(model)
    update_momentum(model, teacher, 0.9)
    assert torch.equal(ema.module.table, model.table) and torch.equal(teacher.table, model.table)


@pytest.mark.parametrize("kind", ["averaged buffers", "bfloat16", "stochastic"])
def test_compiled_updates_have_the_same_bits(kind):
    torch._dynamo.reset()
    model = small()
    eager = EMA(model, 0.9, **KINDS[kind])
    compiled = copy.deepcopy(eager)
    step = torch.compile(lambda: compiled.update(model), backend="aot_eager")
    for call in (lambda: compiled.update(model), step, step, lambda: compiled.update(model), step):
        wander(model)
        eager.update(model)
        call()
    assert same(eager, compiled)


@pytest.mark.parametrize("m", [0.9, torch.tensor(0.9, dtype=torch.float64)], ids=["number", "tensor"])
def test_update_momentum_compiles_without_a_break(m):
    torch._dynamo.reset()
    model = Net()
    eager, compiled = copy.deepcopy(model), copy.deepcopy(model)
    step = torch.compile(update_momentum, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        wander(model)
        update_momentum(model, eager, m)
        step(model, compiled, m)
    assert same(eager, compiled)


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def complex_net() -> nn.Module:
    model = small()
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    return model


def mkldnn() -> nn.Module:
    model = small()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_mkldnn(), requires_grad=False)
    return model


BAD = {
    "not a module": (TypeError, "EMA: model must be a torch.nn.Module, got list", lambda e: EMA([])),
    "no parameters": (ValueError, "EMA: model must have at least one float parameter", lambda e: EMA(nn.ReLU())),
    "lazy": (ValueError, "EMA: parameter 'weight' must be initialised", lambda e: EMA(nn.LazyLinear(3))),
    "complex": (TypeError, "EMA: parameter 'phase' must be float32.*complex64", lambda e: EMA(complex_net())),
    "buffers": (ValueError, "EMA: buffers must be one of 'copy', 'ema', 'skip', got 'all'", lambda e: EMA(small(), buffers="all")),
    "order": (ValueError, "EMA: order must be one of 'lerp', 'mul_add', got 'add'", lambda e: EMA(small(), order="add")),
    "rounding": (ValueError, "EMA: rounding must be one of", lambda e: EMA(small(), rounding="up")),
    "dtype": (TypeError, "EMA: dtype must be None.*got torch.int8", lambda e: EMA(small(), dtype=torch.int8)),
    "dtype text": (TypeError, "EMA: dtype must be None.*got str", lambda e: EMA(small(), dtype="bfloat16")),
    "mkldnn": (
        TypeError,
        "EMA.update: parameter '0.weight' must be.*got torch._mkldnn",
        lambda e: e.update(mkldnn()),
    ),
    "float64": (TypeError, "float64 tensors stays as it is", lambda e: EMA(small().double(), dtype=torch.bfloat16)),
    "seed": (ValueError, "EMA: seed must be an integer in", lambda e: EMA(small(), seed=-1)),
    "momentum": (ValueError, r"EMA: momentum must be in \[0, 1\].*got 1.1", lambda e: EMA(small(), 1.1)),
    "momentum set": (ValueError, "EMA: momentum must be in.*got nan", lambda e: setattr(e, "momentum", math.nan)),
    "momentum text": (TypeError, "EMA: momentum must be a number", lambda e: EMA(small(), "0.9")),
    "momentum vector": (ValueError, "EMA: momentum must be a number or a one-element", lambda e: EMA(small(), torch.ones(2))),
    "update NaN": (ValueError, "EMA.update: momentum must be in.*got nan", lambda e: e.update(small(), math.nan)),
    "update tensor": (ValueError, "EMA.update: momentum must be in.*got -0.5", lambda e: e.update(small(), torch.tensor(-0.5))),
    "update what": (TypeError, "EMA.update: model must be a torch.nn.Module, got Tensor", lambda e: e.update(torch.ones(2))),
    "shapes": (ValueError, r"EMA.update: parameter '2.weight' .*got \(3, 5\) and \(2, 5\)", lambda e: e.update(wider())),
    "count": (ValueError, "as many parameters as its average, got 4 and 6.*'2.weight'", lambda e: e.update(small()[:2])),
    "buffer count": (ValueError, "as many buffers as its average, got 0 and 3.*'1.running_mean'", lambda e: e.update(unbuffered())),
    "device": (ValueError, "all tensors must be on one device, got cpu and.*meta", lambda e: e.update(small().to("meta"))),
    "float64 model": (TypeError, "float64 stands with float64 only", lambda e: e.update(small().double())),
    "copy_from": (ValueError, "EMA.copy_from: parameter '2.weight'", lambda e: e.copy_from(wider())),
    "lists": (
        ValueError,
        "get_ema_multi_avg_fn: averaged and current must hold",
        lambda e: get_ema_multi_avg_fn()([torch.ones(1)], [], 1),
    ),
    "decay": (ValueError, "get_ema_multi_avg_fn: decay must be in.*got 2", lambda e: get_ema_multi_avg_fn(2)),
    "m": (ValueError, "update_momentum: m must be in.*got nan", lambda e: update_momentum(small(), e.module, math.nan)),
    "m meta": (
        ValueError,
        "update_momentum: m must be a number or a one-element float",
        lambda e: update_momentum(small(), e.module, torch.ones(2, device="meta")),
    ),
    "m None": (TypeError, "update_momentum: m must be a number.*NoneType", lambda e: update_momentum(small(), e.module, None)),
    "model_ema": (TypeError, "update_momentum: model_ema must be a torch.nn.Module", lambda e: update_momentum(small(), [], 0.9)),
    "update_momentum shapes": (
        ValueError,
        "update_momentum: parameter '2.weight'",
        lambda e: update_momentum(wider(), e.module, 0.9),
    ),
    "update_momentum device": (
        ValueError,
        "update_momentum: all tensors must be on one device, got cpu and, in model.0., meta",
        lambda e: update_momentum(small().to("meta"), e.module, 0.9),
    ),
    "averaged dtype": (
        TypeError,
        r"get_ema_multi_avg_fn: float64 stands with float64 only, got averaged\[0\] .*and current\[0\]",
        lambda e: get_ema_multi_avg_fn()([torch.ones(1)], [torch.ones(1).double()], 1),
    ),
    "averaged float8": (
        TypeError,
        r"get_ema_multi_avg_fn: averaged\[0\] must be float32.*got torch.float8_e4m3fn",
        lambda e: get_ema_multi_avg_fn()([torch.ones(1).to(torch.float8_e4m3fn)], [torch.ones(1)], 1),
    ),
    "integers of floats": (
        TypeError,
        "get_ema_multi_avg_fn: integers are copied from integers.*got torch.uint16 in averaged and torch.float32 in current",
        lambda e: get_ema_multi_avg_fn()([torch.ones(1).to(torch.uint16)], [torch.ones(1)], 1),
    ),
    "fake among real": (
        ValueError,
        r"get_ema_multi_avg_fn: averaged\[0\] and current\[0\] must both be fake tensors or both have data",
        lambda e: get_ema_multi_avg_fn()([torch.ones(1)], [FakeTensorMode().from_tensor(torch.ones(1))], 1),
    ),
    "update_momentum empty": (ValueError, "at least one float", lambda e: update_momentum(nn.ReLU(), nn.ReLU(), 0.9)),
}


def unbuffered() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))


@pytest.mark.filterwarnings("ignore:update_momentum. an average in")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "stochastic"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words_and_changes_nothing(name, kind):
    error, words, call = BAD[name]
    ema = EMA(small(), 0.9, **KINDS[kind])
    before, state = values(ema), {key: t.clone() for key, t in ema.state_dict().items()}
    with pytest.raises(error, match=words):
        call(ema)
    assert same(ema, before) and all(torch.equal(t, state[key]) for key, t in ema.state_dict().items()) and ema.momentum == 0.9
