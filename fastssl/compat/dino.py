"""For the training script of facebookresearch/dino: its loss, the two lines of its teacher update, the schedule of its momentum."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole
from fastssl.loss.dino import update_center

from ._common import average_parameters, check_share
from ._soft_targets import chunked_loss, everyone, temperature_schedule

__all__ = ["DINOLoss", "cosine_scheduler", "update_teacher"]


class DINOLoss(nn.Module):
    """The loss of ``main_dino.py``, with its state: the centre (1, K). It works with and without a process group.

    Args:
        out_dim: the number K of prototypes.
        ncrops: the number of the student's crops, the two global ones first.
        warmup_teacher_temp: the teacher's temperature at the first epoch.
        teacher_temp: the teacher's temperature after the warm-up.
        warmup_teacher_temp_epochs: epochs over which it goes from one to the other, linearly.
        nepochs: epochs of the training.
        student_temp: the student's temperature.
        center_momentum: the share of the centre that is kept.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> criterion = DINOLoss(16, 4, 0.04, 0.07, warmup_teacher_temp_epochs=30, nepochs=100)
        >>> student, teacher = torch.randn(4 * 8, 16, requires_grad=True), torch.randn(2 * 8, 16)
        >>> criterion(student, teacher, epoch=0).backward()
        >>> list(criterion.state_dict()), criterion.center.shape
        (['center'], torch.Size([1, 16]))
    """

    center: Tensor

    def __init__(
        self,
        out_dim: int,
        ncrops: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        nepochs: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ):
        super().__init__()
        op = "DINOLoss"
        self.ncrops = check_whole(op, "ncrops", ncrops, 2)
        check_number(op, "student_temp", student_temp, 0.0)
        check_share(op, "center_momentum", center_momentum)
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.zeros(1, check_whole(op, "out_dim", out_dim, 1)))
        epochs = (warmup_teacher_temp_epochs, nepochs)
        self.teacher_temp_schedule = temperature_schedule(op, warmup_teacher_temp, teacher_temp, *epochs)

    def forward(self, student_output: Tensor, teacher_output: Tensor, epoch: int) -> Tensor:
        """The mean over pairs of different crops and images; the centre is moved afterwards.

        Args:
            student_output: (ncrops B, K) logits, crop after crop.
            teacher_output: (2 B, K) logits of the global crops. A constant.
            epoch: chooses the teacher's temperature.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``dino_loss``; the centre is unchanged then.
        """
        temperature = self.teacher_temp_schedule[epoch]
        loss = chunked_loss("DINOLoss", self, student_output, teacher_output, self.ncrops, temperature)
        self.update_center(teacher_output)
        return loss

    def update_center(self, teacher_output: Tensor) -> None:
        """Moves the centre by the mean of logits (N, K), over the rows of all processes, in place."""
        update_center(self.center, teacher_output, self.center_momentum, everyone())


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
