"""Rows of the updates in place, of the queue, and of the schedules of momentum."""

import math

import torch
from torch import Tensor, nn

from fastssl import functional, momentum
from fastssl.reference import adamw as adamw_reference
from fastssl.reference import ema as ema_reference
from fastssl.reference import lars as lars_reference
from fastssl.reference import queue as queue_reference

from .table import Case, Maker


def _shapes(m: Maker) -> list[tuple[int, ...]]:
    return [m.choice(((), (1,), (5,), (3, 4), (2, 3, 2), (0,))) for _ in range(m.choice((1, 2, 3)))]


def _lists(m: Maker, *names: str, other: tuple[str, ...] = ()) -> dict:
    """Lists of tensors of the same shapes; those of ``other`` may be of another float dtype."""
    shapes, dtype = _shapes(m), m.dtype
    made = {name: [m.rows(*shape) for shape in shapes] for name in names}
    for name in other:
        m.dtype = dtype if dtype == torch.float64 else m.choice((dtype, torch.float32, torch.bfloat16))
        made[name] = [m.rows(*shape) for shape in shapes]
    m.dtype = dtype
    return made


def _share(m: Maker, *values: float):
    value = m.choice(values)
    return value if m.random() < 0.6 else torch.full(m.choice(((), (1,))), value, dtype=torch.float64)


def _ema(m: Maker) -> dict:
    made = _lists(m, "ema", other=("params", "shadow"))
    half = m.dtype in (torch.bfloat16, torch.float16)
    return {
        "ema": made["ema"],
        "params": made["params"],
        "momentum": _share(m, 0, 0.4, 0.9, 0.9999, 1.0),
        "order": m.choice(("lerp", "mul_add")),
        "shadow": m.maybe(made["shadow"], 0.3),
        "rounding": "stochastic" if half and m.random() < 0.3 else "nearest",
        "seed": m.choice((0, 7, torch.tensor(3))),
    }


def _number(value) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _list(value) -> list[Tensor]:
    return [] if value is None else [value] if isinstance(value, Tensor) else list(value)


@torch.no_grad()
def _ema_truth(ema, params, momentum, order="lerp", shadow=None, rounding="nearest", seed=0):
    lists = [t.detach() for t in _list(ema)], [t.detach() for t in _list(params)], [t.detach() for t in _list(shadow)]
    seed = int(seed)
    ema_reference.ema_update_(*lists, _number(momentum), None, order == "mul_add", rounding == "stochastic", seed, None)


def _copies(m: Maker, made: dict) -> dict:
    ema = m.maybe(made["ema"], 0.5)
    return {
        "ema": ema,
        "ema_momentum": _share(m, 0.9, 0.999),
        "shadow": m.maybe(made["shadow"], 0.3),
        "ema_shadow": None if ema is None else m.maybe(made["ema_shadow"], 0.3),
    }


def _adamw(m: Maker) -> dict:
    made = _lists(m, "params", "exp_avg", "exp_avg_sq", "ema", other=("grads", "shadow", "ema_shadow"))
    count = len(made["params"])
    return {
        "params": made["params"],
        "grads": made["grads"],
        "exp_avg": made["exp_avg"],
        "exp_avg_sq": [t.abs() for t in made["exp_avg_sq"]],
        "step": m.choice((1, 7, torch.tensor(3), torch.tensor(2.0))),
        "lr": _share(m, 0.0, 1e-3, 0.5),
        "betas": m.choice(((0.9, 0.999), (0.0, 0.5), [0.9, 0.99])),
        "eps": m.choice((1e-8, 0, 0.1)),
        "weight_decay": m.choice((0, 1e-2, [0.1] * count)),
        **_copies(m, made),
    }


def _of_each(value, count: int) -> list[float]:
    return list(value) if isinstance(value, list | tuple | range) else [value] * count


@torch.no_grad()
def _adamw_truth(
    params, grads, exp_avg, exp_avg_sq, step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, **copies
):  # fmt: skip
    lists = ([t.detach() for t in _list(x)] for x in (params, grads, exp_avg, exp_avg_sq))
    rates = _number(step), None, _number(lr), None, *betas, eps, _of_each(weight_decay, len(_list(params)))
    adamw_reference.adamw_(*lists, *rates, *_copies_given(**copies))


def _copies_given(ema=None, ema_momentum=0.999, shadow=None, ema_shadow=None) -> tuple:
    """The last arguments of both ops."""
    ema, shadow, ema_shadow = ([t.detach() for t in _list(x)] for x in (ema, shadow, ema_shadow))
    return ema, _number(ema_momentum), None, shadow, ema_shadow


def _lars(m: Maker) -> dict:
    made = _lists(m, "params", "momenta", "ema", other=("grads", "shadow", "ema_shadow"))
    form, count = m.choice(("moco_v3", "larc", "paper")), len(made["params"])
    return {
        "params": made["params"],
        "grads": made["grads"],
        "momenta": made["momenta"],
        "lr": _share(m, 0.0, 1e-3, 0.5),
        "momentum": m.choice((0.5, 0.9)),
        "weight_decay": m.choice((0, 1e-2, [0.1] * count)),
        "trust_coefficient": m.choice((0.001, 0.5)),
        "eps": m.choice((1e-8, 0, 0.1)),
        "form": form,
        "adapt": m.choice((True, False, [True] * count)),
        "nesterov": m.random() < 0.3,
        "clip": form == "larc" and m.random() < 0.5,
        **_copies(m, made),
    }


@torch.no_grad()
def _lars_truth(
    params, grads, momenta, lr, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001, eps=1e-8, form="moco_v3", adapt=True,
    nesterov=False, clip=False, **copies,
):  # fmt: skip
    lists = ([t.detach() for t in _list(x)] for x in (params, grads, momenta))
    count, number = len(_list(params)), ("moco_v3", "larc", "paper").index(form)
    rates = _number(lr), None, momentum, _of_each(weight_decay, count), trust_coefficient, eps, number, _of_each(adapt, count)
    lars_reference.lars_(*lists, *rates, nesterov, clip, *_copies_given(**copies))


def _push(m: Maker) -> dict:
    size, width, layout, count = m.choice((1, 4, 9)), m.choice((1, 3)), m.choice(("dk", "kd")), m.choice((1, 2, 12))
    queue, labelled = m.rows(size, width), m.random() < 0.4
    return {
        "queue": queue.T.contiguous() if layout == "dk" else queue,
        "ptr": m.integers(0, size, *m.choice(((), (1,)))),
        "keys": m.leaf(count, width),
        "layout": layout,
        "overflow": m.choice(("wrap", "truncate")),
        "label_queue": m.integers(0, 9, size) if labelled else None,
        "labels": m.integers(0, 9, count) if labelled else None,
    }


@torch.no_grad()
def _push_truth(queue, ptr, keys, layout="dk", overflow="wrap", label_queue=None, labels=None):
    labels = None if labels is None else labels.to(label_queue.dtype, copy=True)  # they may lie in the memory that is written
    keys = keys.detach().to(queue.dtype, copy=True)
    queue_reference.queue_push_(queue.detach(), ptr, keys, label_queue, labels, layout == "dk", overflow == "truncate")


def _update(m: Maker) -> dict:
    made = _lists(m, "model_ema", other=("model",))
    return {"model": made["model"], "model_ema": made["model_ema"], "m": _share(m, 0, 0.4, 0.9, 1.0)}


def _as_module(value):
    """Tensors as the parameters of a module, in the same memory; anything else as it is."""
    if not isinstance(value, list) or not value or not all(isinstance(t, Tensor) for t in value):
        return value
    module = nn.Module()
    for i, t in enumerate(value):
        module.register_parameter(f"p{i}", t if isinstance(t, nn.Parameter) else nn.Parameter(t, requires_grad=False))
    return module


def _call_update(function, arguments: dict):
    return function(_as_module(arguments["model"]), _as_module(arguments["model_ema"]), arguments["m"])


@torch.no_grad()
def _update_truth(model, model_ema, m):
    """Integers are copied."""
    for mine, theirs in zip(model_ema, model, strict=True):
        if mine.is_floating_point():
            _ema_truth(mine, theirs, m)
        else:
            mine.copy_(theirs)


def _multi(m: Maker) -> dict:
    made = _lists(m, "averaged", other=("current",))
    return {"decay": _share(m, 0, 0.4, 0.9, 1.0), "averaged": made["averaged"], "current": made["current"]}


def _call_multi(function, arguments: dict):
    return function(arguments["decay"])(arguments["averaged"], arguments["current"], 3)


def _multi_truth(decay, averaged, current):
    lists = ([t] if isinstance(t, Tensor) else t for t in (current, averaged))  # a tensor alone is a list of it
    _update_truth(*lists, decay)


# --- schedules ---------------------------------------------------------------------------------------------------------------


def _step(m: Maker):
    number = m.choice((0, 1, 37, 100))
    return m.choice((number, torch.tensor(number), torch.tensor([number], dtype=torch.int32)))


def _schedule(m: Maker) -> dict:
    made = {"step": _step(m), "max_steps": m.choice((1, 2, 100)), "start": m.choice((0, 0.996)), "end": m.choice((1, 0.5))}
    return made | {"last_is_end": m.random() < 0.5}


def _progress(step, max_steps, last_is_end) -> float:
    last = int(max_steps) - bool(last_is_end)
    return 1.0 if last == 0 else min(max(_number(step), 0) / last, 1.0)


def _cosine_truth(step, max_steps, start=0.996, end=1.0, last_is_end=False):
    return end - (end - start) * (1.0 + math.cos(math.pi * _progress(step, max_steps, last_is_end))) / 2.0


def _linear_truth(step, max_steps, start=0.996, end=1.0, last_is_end=False):
    return end - (end - start) * (1.0 - _progress(step, max_steps, last_is_end))


def _warmup(m: Maker) -> dict:
    return {"step": _step(m), "gamma": m.choice((1.0, 20)), "power": m.choice((2 / 3, 1)), "maximum": m.choice((0.9999, 1, 0))}


def _warmup_truth(step, gamma=1.0, power=2 / 3, maximum=0.9999):
    return min(-math.expm1(-float(power) * math.log1p(max(_number(step), 0) / gamma)), maximum)


def _double(found, arguments: dict):
    return torch.as_tensor(found, dtype=torch.float64).reshape(())


_ADAMW = ("params", "exp_avg", "exp_avg_sq", "ema", "shadow", "ema_shadow")
_LARS = ("params", "momenta", "ema", "shadow", "ema_shadow")
_UPDATE = {"writes": ("model_ema",), "call": _call_update, "names": ("parameter",)}
_MULTI = {"writes": ("averaged",), "call": _call_multi}
CASES = [
    Case("ema_update_", functional.ema_update_, _ema, _ema_truth, writes=("ema", "shadow")),
    Case("adamw_", functional.adamw_, _adamw, _adamw_truth, writes=_ADAMW, names=("beta1", "beta2")),
    Case("lars_", functional.lars_, _lars, _lars_truth, writes=_LARS),
    Case("queue_push_", functional.queue_push_, _push, _push_truth, writes=("queue", "ptr", "label_queue")),
    Case("update_momentum", momentum.update_momentum, _update, _update_truth, **_UPDATE),
    Case("get_ema_multi_avg_fn", momentum.get_ema_multi_avg_fn, _multi, _multi_truth, **_MULTI),
    Case("cosine_schedule", momentum.cosine_schedule, _schedule, _cosine_truth, _double),
    Case("linear_schedule", momentum.linear_schedule, _schedule, _linear_truth, _double),
    Case("warmup_schedule", momentum.warmup_schedule, _warmup, _warmup_truth, _double),
]
