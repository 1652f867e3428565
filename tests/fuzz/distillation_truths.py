"""Soft targets and Sinkhorn's iteration written plainly, in float64: what ``distillation.py`` compares with."""

import torch
from torch import Tensor


def _number(value):
    return value.reshape(()) if isinstance(value, Tensor) else value


def soft_cross_entropy(
    student, teacher, student_temperature=0.1, teacher_temperature=0.04, center=None, potential=None, weight=None,
    ignore_diagonal=False, heads=None, reduction="mean", in_place=False,
):  # fmt: skip
    rows = student.shape[:-1]
    student, teacher = (x if x.dim() == 3 else x[None] for x in (student, teacher))
    target = teacher.detach()
    if teacher_temperature is not None:
        target = target + (0 if potential is None else potential) - (0 if center is None else center)
    pairs = 0.0
    for s, t in zip(student.split(heads or [student.shape[2]], 2), target.split(heads or [student.shape[2]], 2), strict=True):
        q = t if teacher_temperature is None else (t / _number(teacher_temperature)).softmax(2)
        pairs = pairs - torch.einsum("tbk,sbk->stb", q, (s / _number(student_temperature)).log_softmax(2))
    count = pairs[:, :, 0].numel()
    if ignore_diagonal:
        keep = ~torch.eye(*pairs.shape[:2], dtype=torch.bool)
        pairs, count = torch.where(keep[:, :, None], pairs, 0.0), int(keep.sum())
    loss = pairs.sum(1)
    if weight is not None:
        weight = weight.reshape(loss.shape)
        loss = torch.where(weight == 0, 0.0, loss * weight)
    if reduction == "none":
        return loss.reshape(rows)
    return loss.sum() / (count * student.shape[1]) if reduction == "mean" else loss.sum()


def _potential(logits: Tensor, temperature, iterations: int) -> Tensor:
    """Of rows (M, K), by log-sum-exps in both directions, the largest 0."""
    x, columns, rows = logits / temperature, 0.0, 0.0
    for _ in range(iterations):
        columns = -(x + rows).logsumexp(0)
        columns = torch.where(columns == torch.inf, 0.0, columns)  # a prototype at -inf
        rows = -(x + columns).logsumexp(1, keepdim=True)
        rows = torch.where(rows == torch.inf, 0.0, rows)
    return columns * temperature


def sinkhorn(logits, temperature=0.05, iterations=3, separate=None, heads=None, group=None):
    if separate is None:
        parts = [logits.reshape(1, -1, logits.shape[-1])]
        shape = (logits.shape[-1],)
    else:
        at = separate % logits.dim()
        parts = [logits.movedim(at, 0).reshape(logits.shape[at], -1, logits.shape[-1])]
        shape = (logits.shape[at], *(1,) * (logits.dim() - 2 - at), logits.shape[-1])
    made = []
    for rows in parts[0]:
        heads_of = [_potential(part, _number(temperature), iterations) for part in rows.split(heads or [rows.shape[1]], 1)]
        empty = [(part == -torch.inf).all(0) for part in rows.split(heads or [rows.shape[1]], 1)]
        tops = [torch.where(none, -torch.inf, part).max() for none, part in zip(empty, heads_of, strict=True)]
        tops = [torch.where(top == -torch.inf, 0.0, top) for top in tops]
        made.append(torch.cat([torch.where(none, 0.0, p - top) for p, none, top in zip(heads_of, empty, tops, strict=True)]))
    return torch.stack(made).reshape(shape)
