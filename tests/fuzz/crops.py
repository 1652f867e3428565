"""Rows of the losses of crops and patches, and of what stands beside them."""

import torch
from torch import Tensor

from fastssl import functional

from . import distillation_truths as truths
from .distillation import heads_of, temperature_of
from .table import Case, Maker


def _dino(m: Maker) -> dict:
    batch, columns, (students, teachers) = m.choice((1, 3)), m.choice((1, 2, 7, 40)), m.choice(((2, 1), (5, 2), (2, 3)))
    given = m.random() < 0.2
    teacher = m.rows(teachers, batch, columns)
    balanced = m.random() < 0.3
    return {
        "student": m.leaf(students, batch, columns),
        "teacher": teacher.softmax(-1) if given else teacher,
        "center": None if given or balanced else m.maybe(m.rows(*m.choice(((), (1,), (1, 1))), columns)),
        "student_temperature": temperature_of(m, 0.1, 1.0),
        "teacher_temperature": None if given else temperature_of(m, 0.04, 0.5),
        "potential": m.rows(teachers, 1, columns) if balanced and not given else None,
        "ignore_diagonal": m.random() < 0.7,
        "heads": heads_of(m, columns),
        "group": None,
        "in_place": False,
    }


def _dino_truth(group=None, **arguments):
    return truths.soft_cross_entropy(**arguments)


def _ibot(m: Maker) -> dict:
    rows, columns, weighted = m.choice((0, 1, 6)), m.choice((1, 2, 7, 40)), m.random() < 0.6
    return {
        "student": m.leaf(rows, columns),
        "teacher": m.rows(rows, columns),
        "center": m.maybe(m.rows(*m.choice(((), (1,))), columns)),
        "student_temperature": temperature_of(m, 0.1, 1.0),
        "teacher_temperature": temperature_of(m, 0.04, 0.5),
        "potential": None,
        "weight": (m.rows(rows) * 2).round().abs() if weighted else None,
        "images": m.choice((None, 1, 4)),
        "heads": heads_of(m, columns),
        "group": None,
        "in_place": False,
    }


def _ibot_truth(weight=None, images=None, group=None, **arguments):
    student = arguments["student"]
    if not len(student):
        return student.sum()
    count = images if images is not None else len(student) if weight is None else weight.sum()
    total = truths.soft_cross_entropy(weight=weight, reduction="sum", **arguments)
    return total / count if isinstance(count, int) else total / count.clamp_min(torch.finfo(torch.float32).tiny)


def _swav(m: Maker) -> dict:
    batch, columns = m.choice((1, 3)), m.choice((1, 3, 16))
    crops, assigned = m.choice(((2, 1), (2, 2), (5, 2)))
    queue = m.rows(assigned, m.choice((1, 5)), columns)
    return {
        "logits": m.leaf(crops, batch, columns),
        "queue": m.maybe(m.choice((queue, list(queue)))),
        "assigned": assigned,
        "student_temperature": temperature_of(m, 0.1, 1.0),
        "teacher_temperature": temperature_of(m, 0.05, 0.5),
        "iterations": m.choice((1, 3)),
        "group": None,
    }


def _swav_truth(logits, queue=None, assigned=2, student_temperature=0.1, teacher_temperature=0.05, iterations=3, group=None):
    teacher = logits.detach()[:assigned]
    each = [crop if queue is None else torch.cat([crop, queue[i]]) for i, crop in enumerate(teacher)]
    potential = torch.stack([truths.sinkhorn(rows[None], teacher_temperature, iterations, separate=0)[0] for rows in each])
    temperatures = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
    return truths.soft_cross_entropy(logits, teacher, potential=potential, ignore_diagonal=True, **temperatures)


def _weights(m: Maker) -> dict:
    mask = m.integers(0, 2, *m.choice(((3, 5), (2, 3, 2), (1, 1)))).bool()
    masked = m.random() < 0.5
    return {
        "mask": mask,
        "visible": 0.0 if masked else m.choice((0.0, 0.5, 1.0)),
        "rows": int(mask.sum()) if masked else None,
    }


def _weights_truth(mask: Tensor, visible=0.0, rows=None):
    flat = mask.flatten(1).double()
    made = flat / flat.sum(1, keepdim=True).clamp_min(1) + visible * (1 - flat) / (1 - flat).sum(1, keepdim=True).clamp_min(1)
    return made.view(mask.shape) if rows is None else made.view(mask.shape)[mask]


def _center(m: Maker) -> dict:
    columns = m.choice((1, 3, 16))
    return {
        "center": m.rows(*m.choice(((), (1,), (1, 1))), columns),
        "teacher": m.rows(*m.choice(((0,), (1,), (6,), (2, 3))), columns),
        "momentum": m.choice((0.0, 0.9, 1.0)),
        "group": None,
    }


@torch.no_grad()
def _center_truth(center, teacher, momentum=0.9, group=None):
    rows = teacher.detach().reshape(-1, teacher.shape[-1])
    if len(rows):
        center.copy_(momentum * center + (1 - momentum) * rows.mean(0).to(center.dtype))


CASES = [
    Case("dino_loss", functional.dino_loss, _dino, _dino_truth),
    Case("ibot_loss", functional.ibot_loss, _ibot, _ibot_truth),
    Case("swav_loss", functional.swav_loss, _swav, _swav_truth, rough=("huge",)),
    Case("patch_weights", functional.patch_weights, _weights, _weights_truth),
    Case("update_center", functional.update_center, _center, _center_truth, writes=("center",)),
]
