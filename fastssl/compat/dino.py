"""For the training script of facebookresearch/dino: the two lines of its teacher update, and the schedule of its momentum."""

import math

import numpy as np
from torch import nn

from fastssl.checks import check_number, check_whole

from ._common import average_parameters

__all__ = ["cosine_scheduler", "update_teacher"]


def update_teacher(student: nn.Module, teacher: nn.Module, m: float) -> None:
    """Moves all parameters of a teacher towards those of a student in one launch, in place; buffers stay.

    Replaces the loop ``param_k.data.mul_(m).add_((1 - m) * param_q.detach().data)``. Frozen parameters and those without gradient
    move too, as there.

    Args:
        student: either module may be wrapped in ``DistributedDataParallel``.
        teacher: with parameters of the same shapes in the same order; written in place.
        m: the share of the teacher that is kept, in [0, 1].

    Raises:
        TypeError, ValueError: the modules do not belong together, or ``m`` is out of range; nothing is changed then.

    Examples:
        >>> student, teacher = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> wanted = 0.75 * teacher.weight + 0.25 * student.weight
        >>> update_teacher(student, teacher, 0.75)
        >>> torch.allclose(teacher.weight, wanted)
        True
    """
    average_parameters("update_teacher", ("student", "teacher"), student, teacher, m)


def cosine_scheduler(
    base_value: float,
    final_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    start_warmup_value: float = 0,
) -> np.ndarray:
    """A schedule with one value for each iteration: linear warm-up, then half a cosine towards ``final_value``.

    After w warm-up iterations of n, value i is ``final + (base - final) / 2 (1 + cos(pi (i - w) / (n - w)))``; the final value
    itself would be number n.

    Args:
        base_value: the value after the warm-up.
        final_value: the value that the cosine approaches.
        epochs: number of epochs, at least 1.
        niter_per_ep: iterations of an epoch, at least 1.
        warmup_epochs: epochs of the warm-up, from 0 to ``epochs``.
        start_warmup_value: the first value of the warm-up.

    Returns:
        float64 (epochs niter_per_ep,).

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> cosine_scheduler(1.0, 0.0, epochs=2, niter_per_ep=2).round(2).tolist()
        [1.0, 0.85, 0.5, 0.15]
    """
    op = "cosine_scheduler"
    for name, value in (("base_value", base_value), ("final_value", final_value), ("start_warmup_value", start_warmup_value)):
        check_number(op, name, value)
    counts = (("epochs", epochs, 1), ("niter_per_ep", niter_per_ep, 1), ("warmup_epochs", warmup_epochs, 0))
    epochs, niter_per_ep, warmup_epochs = (check_whole(op, *named) for named in counts)
    if warmup_epochs > epochs:
        raise ValueError(f"{op}: warmup_epochs must be at most epochs = {epochs}, got {warmup_epochs}")
    warmup = warmup_epochs * niter_per_ep
    steps = np.arange(epochs * niter_per_ep - warmup)
    wave = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(math.pi * steps / max(1, len(steps))))
    return np.concatenate([np.linspace(start_warmup_value, base_value, warmup), wave])
