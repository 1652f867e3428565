"""Steps of soft targets over prototypes, for the table of updates: forward and backward, with loss and gradient in the state.

A form is ``forward(given) -> results`` as in ``masked_updates.py``. The eager forms are what a careful user would write: one
softmax of each side, and one einsum over the pairs of crops.
"""

import math
from functools import partial

import torch
from torch import Tensor

from fastssl import functional
from fastssl.checks import accumulator_dtype

from .crops import cross_entropy, plan
from .masked_updates import Given, Results, forward_backward
from .updates import State, UpdateCase

#: Crops of the student and the teacher: 2 large ones and 8 small ones, of which the teacher sees the large ones.
CROPS, LARGE = 10, 2
ITERATIONS, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 3, 0.1, 0.04


def _logits(shape, dtype, device, seed) -> Tensor:
    """About the inner products of unit rows."""
    return 0.3 * torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def rows_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, K): student and teacher (N, K)."""
    return {"student": _logits(shape, dtype, device, seed), "teacher": _logits(shape, dtype, device, seed + 1)}


def given_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, K): the teacher's rows are probabilities."""
    found = rows_state(shape, dtype, device, seed)
    return found | {"teacher": (found["teacher"].float() / TEACHER_TEMPERATURE).softmax(1).to(dtype)}


def crops_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (B, K): student (10, B, K), teacher (2, B, K), center (K,) in float32."""
    return {
        "student": _logits((CROPS, *shape), dtype, device, seed),
        "teacher": _logits((LARGE, *shape), dtype, device, seed + 1),
        "center": 0.2 * _logits(shape[1:], torch.float32, device, seed + 2),
    }


def _ours_balanced(given: Given) -> Results:
    potential = functional.sinkhorn(given["teacher"], TEACHER_TEMPERATURE, ITERATIONS)
    return {"loss": functional.soft_cross_entropy(given["student"], given["teacher"], potential=potential)}


def _ours_crops(given: Given) -> Results:
    return {"loss": functional.soft_cross_entropy(given["student"], given["teacher"], center=given["center"], ignore_diagonal=True)}


def _ours_given(given: Given) -> Results:
    return {"loss": functional.soft_cross_entropy(given["student"], given["teacher"], teacher_temperature=None)}


def _wide(given: Given) -> tuple[Tensor, Tensor]:
    """The student's log-probabilities and the teacher's rows in float32 or wider."""
    student, teacher = given["student"], given["teacher"]
    wide = accumulator_dtype(student)
    return torch.log_softmax(student.to(wide) / STUDENT_TEMPERATURE, -1), teacher.to(wide)


def _eager_balanced(given: Given) -> Results:
    student, teacher = _wide(given)
    return {"loss": -(plan(teacher, TEACHER_TEMPERATURE, ITERATIONS) * student).sum(1).mean()}


def _eager_crops(given: Given) -> Results:
    student, teacher = _wide(given)
    pairs = cross_entropy(student, torch.softmax((teacher - given["center"]) / TEACHER_TEMPERATURE, 2)).mean(2)
    count = LARGE * CROPS - LARGE
    return {"loss": (pairs.sum() - pairs.diagonal().sum()) / count}


def _eager_given(given: Given) -> Results:
    student, teacher = _wide(given)
    return {"loss": -(teacher * student).sum(1).mean()}


def _case(name: str, state, ours, eager, tensors: tuple[str, ...], moved) -> UpdateCase:
    ours, eager = (partial(forward_backward, form, ("student",)) for form in (ours, eager))
    return UpdateCase(name, state, ours, eager, ("loss", "student_grad"), tensors, moved, steps=1)


def _moved(passes: float):
    """Bytes of ``passes`` times N K elements."""
    return lambda shape, itemsize: passes * math.prod(shape) * itemsize


#: Both sides are read once for the loss and the gradient, which is written; Sinkhorn reads the teacher once an iteration.
DISTILLED_CASES = {
    case.name: case
    for case in (
        _case(
            "soft_targets_sinkhorn", rows_state, _ours_balanced, _eager_balanced, ("student", "teacher"), _moved(3.0 + ITERATIONS)
        ),
        _case(
            "soft_targets_crops",
            crops_state,
            _ours_crops,
            _eager_crops,
            ("student", "teacher", "center"),
            _moved(2.0 * CROPS + LARGE),
        ),
        _case("soft_targets_given", given_state, _ours_given, _eager_given, ("student", "teacher"), _moved(3.0)),
    )
}
