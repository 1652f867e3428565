"""Calls and eager forms of the losses of crops and patches, for the table in ``cases.py``.

Each input is the student's logits (N, K). The teacher's are a constant of the call, and crops are made of the input by arithmetic,
so that any N will do.
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .inputs import in_seven_bits, randn


def student_inputs(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, K)."""
    return {"student": randn(shape, dtype, device, seed)}


def constant(like: Tensor, crops: int) -> Tensor:
    """(crops, N, K) logits that every dtype holds, from arithmetic that a compiled graph can trace."""
    angles = torch.arange(crops * like.shape[0] * like.shape[1], device=like.device, dtype=torch.float64) ** 2
    return in_seven_bits(angles.sin()).to(like.dtype).view(crops, *like.shape)


def dino_case(call):
    """Two crops, of which the teacher has one, and a centre."""

    def run(student):
        teacher = constant(student, 2)
        return call(torch.stack([student, student.flip(0)]), teacher[:1], 0.25 * teacher[1, 0].float())

    return run


def ibot_case(call):
    """Patches of two images, weighted."""

    def run(student):
        teacher = constant(student, 2)
        weight = (torch.arange(len(student), device=student.device) % 3 + 1) / 8
        return call(student, teacher[0], 0.25 * teacher[1, 0].float(), weight=weight, images=2)

    return run


def swav_case(call):
    """Two crops that get codes and are constants, since a code has no gradient, and two that are predicted; a queue."""

    def run(student):
        fixed = constant(student, 4)
        return call(torch.cat([fixed[:2], torch.stack([student, student.flip(0)])]), fixed[2:])

    return run


def cross_entropy(student: Tensor, target: Tensor) -> Tensor:
    """Targets (T, B, K) against log-probabilities (S, B, K) -> (T, S, B)."""
    return -torch.einsum("tbk,sbk->tsb", target, student)


def _of_others(student: Tensor, target: Tensor) -> Tensor:
    """The mean over pairs of different crops."""
    pairs = cross_entropy(student, target)
    itself = torch.eye(*pairs.shape[:2], dtype=torch.bool, device=student.device)
    return pairs.masked_fill(itself[:, :, None], 0.0).sum() / ((~itself).sum() * student.shape[1])


def dino(student, teacher, center, student_temperature=0.1, teacher_temperature=0.04) -> Tensor:
    wide = accumulator_dtype(student)
    target = torch.softmax((teacher.to(wide) - center) / teacher_temperature, 2)
    return _of_others(torch.log_softmax(student.to(wide) / student_temperature, 2), target)


def ibot(student, teacher, center, weight, images, student_temperature=0.1, teacher_temperature=0.04) -> Tensor:
    wide = accumulator_dtype(student)
    target = torch.softmax((teacher.to(wide) - center) / teacher_temperature, 1)
    losses = -(target * torch.log_softmax(student.to(wide) / student_temperature, 1)).sum(1)
    return (losses * weight).sum() / images


def plan(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """SwAV's assignment of rows (M, K), step by step; logits of moderate size."""
    found = torch.exp(logits / temperature).t()
    found = found / found.sum()
    for _ in range(iterations):
        found = found / (found.sum(1, keepdim=True) * found.shape[0])
        found = found / (found.sum(0, keepdim=True) * found.shape[1])
    return (found * found.shape[1]).t()


def swav(logits, queue=None, assigned=2, student_temperature=0.1, teacher_temperature=0.05, iterations=3) -> Tensor:
    wide = logits.to(accumulator_dtype(logits))
    codes = []
    for crop in range(assigned):
        rows = wide[crop].detach() if queue is None else torch.cat([wide[crop].detach(), queue[crop].to(wide.dtype)])
        codes.append(plan(rows, teacher_temperature, iterations)[: wide.shape[1]])
    return _of_others(torch.log_softmax(wide / student_temperature, 2), torch.stack(codes))
