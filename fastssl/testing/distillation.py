"""Calls and eager forms of soft cross-entropy beyond the losses in ``crops.py``: heads, given targets, a centre of each crop.

Inputs are the student's logits (N, K); everything else is a constant of the call, made from arithmetic.
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .crops import constant, cross_entropy


def heads_case(call):
    """Three student crops, two teacher crops with a centre each, two heads; the losses of the rows."""

    def run(student):
        teacher = constant(student, 2)
        size = student.shape[1] // 2
        heads = [size, student.shape[1] - size] if size else [1]
        crops = torch.stack([student, student.flip(0), 0.5 * student])
        return call(crops, teacher, 0.25 * teacher[:, :1].float(), heads)

    return run


def given_case(call):
    """Targets that are no softmax, with weights of which some are 0."""

    def run(student):
        weight = torch.arange(len(student), device=student.device) % 3 / 2.0
        return call(student, constant(student, 1)[0].abs(), weight)

    return run


def heads_loss(loss):
    return lambda student, teacher, center, heads: loss(
        student, teacher, center=center, heads=heads, ignore_diagonal=True, reduction="none"
    )


def given_loss(loss):
    return lambda student, teacher, weight: loss(student, teacher, teacher_temperature=None, weight=weight)


def of_heads(student: Tensor, teacher: Tensor, center: Tensor, heads: list[int]) -> Tensor:
    wide = accumulator_dtype(student)
    parts = zip(student.to(wide).split(heads, 2), (teacher.to(wide) - center).split(heads, 2), strict=True)
    pairs = torch.stack([cross_entropy((s / 0.1).log_softmax(2), (t / 0.04).softmax(2)) for s, t in parts]).sum(0)
    itself = torch.eye(*pairs.shape[:2], dtype=torch.bool, device=student.device)
    return pairs.masked_fill(itself[:, :, None], 0.0).sum(0)


def of_given(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    wide = accumulator_dtype(student)
    return -((teacher.to(wide) * (student.to(wide) / 0.1).log_softmax(1)).sum(1) * weight).mean()
