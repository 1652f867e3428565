"""solo-learn's losses of DINO and SwAV, at its scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole
from fastssl.loss.dino import update_center
from fastssl.ops.soft_cross_entropy import soft_cross_entropy

from ._common import check_share
from ._soft_targets import chunked_loss, crops_of, everyone, temperature_schedule


class DINOLoss(nn.Module):
    """``solo.losses.dino.DINOLoss``: DINO's loss of large crops alone. The method sets ``epoch``.

    Args:
        num_prototypes: K.
        warmup_teacher_temp: the teacher's temperature at the first epoch.
        teacher_temp: the teacher's temperature after the warm-up.
        warmup_teacher_temp_epochs: epochs over which it goes from one to the other, linearly.
        num_epochs: epochs of the training.
        student_temp: the student's temperature.
        num_large_crops: the number of the student's crops; the teacher has two.
        center_momentum: the share of the centre that is kept.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> criterion = DINOLoss(16, 0.04, 0.07, warmup_teacher_temp_epochs=5, num_epochs=10)
        >>> criterion.epoch = 3
        >>> criterion(torch.randn(2 * 8, 16), torch.randn(2 * 8, 16)).shape
        torch.Size([])
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        num_epochs: int,
        student_temp: float = 0.1,
        num_large_crops: int = 2,
        center_momentum: float = 0.9,
    ):
        super().__init__()
        op = "DINOLoss"
        self.epoch = 0
        self.num_large_crops = check_whole(op, "num_large_crops", num_large_crops, 2)
        check_number(op, "student_temp", student_temp, 0.0)
        check_share(op, "center_momentum", center_momentum)
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.zeros(1, check_whole(op, "num_prototypes", num_prototypes, 1)))
        epochs = (warmup_teacher_temp_epochs, num_epochs)
        self.teacher_temp_schedule = temperature_schedule(op, warmup_teacher_temp, teacher_temp, *epochs)

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """The mean over pairs of different crops and images; the centre is moved afterwards, by the rows of all processes.

        Args:
            student_output: (num_large_crops B, K) logits, crop after crop.
            teacher_output: (2 B, K) logits. A constant.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``dino_loss``; the centre is unchanged then.
        """
        temperature = self.teacher_temp_schedule[self.epoch]
        loss = chunked_loss("DINOLoss", self, student_output, teacher_output, self.num_large_crops, temperature)
        self.update_center(teacher_output)
        return loss

    def update_center(self, teacher_output: Tensor) -> None:
        """Moves the centre by the mean of logits (N, K), over the rows of all processes, in place."""
        update_center(self.center, teacher_output, self.center_momentum, everyone())


def swav_loss_func(preds: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """SwAV's loss of given codes: the mean cross-entropy over pairs of different views.

    Args:
        preds: the products (N, K) of each view's embeddings with the prototypes.
        assignments: the codes (N, K) of each view, which are probabilities. Constants.
        temperature: divides the products.

    Returns:
        The mean loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: as ``soft_cross_entropy``.

    Examples:
        >>> preds = list(torch.randn(2, 8, 30))
        >>> swav_loss_func(preds, [torch.softmax(p, 1) for p in preds]).shape
        torch.Size([])
    """
    student, teacher = crops_of("swav_loss_func", "preds", preds), crops_of("swav_loss_func", "assignments", assignments)
    how: dict[str, Any] = {"student_temperature": temperature, "teacher_temperature": None, "ignore_diagonal": True}
    return soft_cross_entropy(student, teacher.detach(), **how)
