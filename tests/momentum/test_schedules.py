"""Schedules of the momentum: exact to float64, the curves of lightly, DINO and timm, integers and tensors, refusals."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from fastssl.momentum import cosine_schedule, linear_schedule, warmup_schedule
from tests.support.momentum_models import peer, small


def cosine_of(angle: Decimal) -> Decimal:
    """Taylor series; the terms end below 1e-45."""
    term, total, k = Decimal(1), Decimal(1), 0
    while abs(term) > Decimal("1e-45"):
        k += 2
        term *= -angle * angle / (k * (k - 1))
        total += term
    return total


PI = Decimal("3.14159265358979323846264338327950288419716939937510582")


@pytest.mark.parametrize("form", [int, torch.tensor])
@pytest.mark.parametrize("start, end", [(0.996, 1.0), (0.99, 0.9999), (0.9995, 1.0)])
def test_one_minus_the_momentum_is_as_exact_as_float64_allows(start, end, form):
    """Within 0.6 of a unit of float64 below 1 of the formula in 50 decimal digits."""
    unit, size = Decimal(2) ** -53, 1000
    with localcontext() as context:
        context.prec = 50
        s, e = Decimal(start), Decimal(end)
        for step in (0, 1, 2, 333, 500, 501, 777, 990, 998, 999, 1000):
            t = Decimal(step) / size
            truth = {cosine_schedule: e - (e - s) * (1 + cosine_of(PI * t)) / 2, linear_schedule: e - (e - s) * (1 - t)}
            for schedule, m in truth.items():
                got = schedule(form(step), size, start=start, end=end)
                assert abs((1 - Decimal(float(got))) - (1 - m)) <= Decimal("0.6") * unit, (schedule.__name__, step)


def test_cosine_is_lightlys_and_dinos():
    theirs = peer("lightly.utils.scheduler").cosine_schedule
    for size in (1, 2, 7, 100):
        dino = 1.0 + 0.5 * (0.996 - 1.0) * (1 + np.cos(np.pi * np.arange(size) / size))
        for step in range(size):
            assert abs(cosine_schedule(step, size, last_is_end=True) - theirs(step, size, 0.996, 1.0)) < 2e-16
            assert abs(cosine_schedule(step, size) - dino[step]) < 2e-16
    assert cosine_schedule(0, 10) == linear_schedule(0, 10) == 0.996
    assert (
        cosine_schedule(10, 10)
        == linear_schedule(11, 10)
        == cosine_schedule(9, 10, last_is_end=True)
        == 1.0
        != cosine_schedule(9, 10)
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_step_gives_a_float64_scalar(dtype, shape):
    calls = [
        lambda s: cosine_schedule(s, 50),
        lambda s: cosine_schedule(s, 1, last_is_end=True),
        lambda s: cosine_schedule(s, 50, start=0, end=2**64),
        lambda s: warmup_schedule(s, gamma=2**64),
        lambda s: linear_schedule(s, 50, start=0.9, end=0.99, last_is_end=True),
        warmup_schedule,
        lambda s: warmup_schedule(s, 10.0, 0.75, 0.9),
    ]
    for step in (0, 1, 25, 49, 50, 200):
        for call in calls:
            got = call(torch.full(shape, step, dtype=dtype))
            assert got.shape == () and got.dtype == torch.float64
            assert abs(got.item() - call(step)) < 2e-16


def test_warmup_is_timms():
    ema = peer("timm.utils.model_ema").ModelEmaV3(small(), 0.9999, use_warmup=True)
    for step in (1, 2, 10, 1000, 31_600, 10**6, 10**7):
        assert abs(warmup_schedule(step) - ema.get_decay(step + 1)) < 3e-16
    assert warmup_schedule(0) == 0.0 and abs(warmup_schedule(31_600) - 0.999) < 1e-6


STEP = torch.tensor(3)
BAD_SCHEDULES = {
    "negative": (ValueError, "cosine_schedule: step must be at least 0, got -1", lambda: cosine_schedule(-1, 10)),
    "float": (TypeError, "linear_schedule: step must be an integer.*float", lambda: linear_schedule(0.5, 10)),
    "float tensor": (ValueError, "step must be an integer tensor|torch.float32", lambda: cosine_schedule(STEP.float(), 10)),
    "bool": (TypeError, "step must be.*bool", lambda: cosine_schedule(True, 10)),
    "vector": (ValueError, r"torch.int64 \(2,\)", lambda: cosine_schedule(STEP.repeat(2), 10)),
    "no steps": (ValueError, "max_steps must be at least 1, got 0", lambda: cosine_schedule(STEP, 0)),
    "max_steps": (TypeError, "max_steps must be an integer, got float", lambda: linear_schedule(1, 10.0)),
    "steps array": (
        TypeError,
        "cosine_schedule: max_steps must be an integer, got ndarray",
        lambda: cosine_schedule(1, np.array([9, 9])),
    ),
    "many steps": (
        ValueError,
        r"linear_schedule: max_steps must be below 2\^63, got an integer",
        lambda: linear_schedule(1, 10**400),
    ),
    "large step": (ValueError, r"warmup_schedule: step must be below 2\^63", lambda: warmup_schedule(10**400, 0.1)),
    "sparse step": (
        TypeError,
        "cosine_schedule: step must be a dense tensor",
        lambda: cosine_schedule(STEP.reshape(1).to_sparse(), 10),
    ),
    "last_is_end": (
        TypeError,
        "linear_schedule: last_is_end must be True or False, got Tensor",
        lambda: linear_schedule(1, 10, last_is_end=torch.tensor(True)),
    ),
    "lightly's order": (TypeError, "cosine_schedule.. takes 2 positional", lambda: cosine_schedule(9, 10, 0.99, 1.0)),
    "start": (ValueError, "cosine_schedule: start must be finite, got nan", lambda: cosine_schedule(1, 10, start=math.nan)),
    "end": (TypeError, "cosine_schedule: end must be a number, got str", lambda: cosine_schedule(1, 10, end="1")),
    "gamma": (ValueError, "warmup_schedule: gamma must be above 0, got 0", lambda: warmup_schedule(1, 0)),
    "power": (ValueError, "warmup_schedule: power must be finite, got inf", lambda: warmup_schedule(1, power=math.inf)),
    "maximum": (ValueError, r"maximum must be in \[0, 1\], got 1.5", lambda: warmup_schedule(1, maximum=1.5)),
}


@pytest.mark.parametrize("name", BAD_SCHEDULES)
def test_bad_schedules_are_refused_in_words(name):
    error, words, call = BAD_SCHEDULES[name]
    with pytest.raises(error, match=words):
        call()
