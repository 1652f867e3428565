"""Rows of soft targets and of Sinkhorn's iteration."""

import torch
from torch import Tensor

from fastssl import functional

from . import distillation_truths as truths
from .table import Case, Maker

REDUCTIONS = ("mean", "sum", "none")


def temperature_of(m: Maker, *values: float):
    """A number or a tensor of one element."""
    value = m.choice(values)
    shape = m.choice(((), (1,)))
    return m.choice((value, torch.full(shape, value), torch.full(shape, value, dtype=torch.float64)))


def heads_of(m: Maker, columns: int) -> list[int] | None:
    return m.choice((None, [1, columns - 1])) if columns > 1 else None


def _bias(m: Maker, *shape: int) -> Tensor | None:
    """Of all rows, of each index of one dimension, or of each row."""
    front = m.choice(((), (1,) * (len(shape) - 1), shape[:-1], *((shape[0], 1), (1, shape[1]))[: 2 * (len(shape) - 2)]))
    return m.maybe(m.rows(*front, shape[-1]), 0.4)


def _soft_cross_entropy(m: Maker) -> dict:
    batch, columns, crops = m.choice((1, 3)), m.choice((1, 2, 7, 40)), m.choice((None, (1, 2), (5, 2), (2, 3)))
    students, teachers = ((batch,), (batch,)) if crops is None else ((crops[0], batch), (crops[1], batch))
    given = m.random() < 0.3
    teacher = m.rows(*teachers, columns)
    return {
        "student": m.leaf(*students, columns),
        "teacher": teacher.softmax(-1) if given else teacher,
        "student_temperature": temperature_of(m, 0.1, 1.0),
        "teacher_temperature": None if given else temperature_of(m, 0.04, 0.5),
        "center": None if given else _bias(m, *teachers, columns),
        "potential": None if given else _bias(m, *teachers, columns),
        "weight": m.maybe((m.rows(*students) * 2).round().abs(), 0.4),
        "ignore_diagonal": crops is not None and m.random() < 0.5,
        "heads": heads_of(m, columns),
        "reduction": m.choice(REDUCTIONS),
        "in_place": False,
    }


def _sinkhorn(m: Maker) -> dict:
    shape = m.choice(((1,), (6,), (2, 5), (3, 2, 4)))
    columns = m.choice((1, 3, 16))
    return {
        "logits": m.rows(*shape, columns),
        "temperature": temperature_of(m, 0.05, 0.5),
        "iterations": m.choice((1, 2, 3)),
        "separate": m.choice((None, None, 0, len(shape) - 1, -2)),
        "heads": heads_of(m, columns),
        "group": None,
    }


CASES = [
    Case("soft_cross_entropy", functional.soft_cross_entropy, _soft_cross_entropy, truths.soft_cross_entropy),
    Case("sinkhorn", functional.sinkhorn, _sinkhorn, truths.sinkhorn, rough=("temperature",)),  # its unit may be 1e16
]
