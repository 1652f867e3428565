"""What DINO and iBOT share: the teacher's scores of prototypes, what balances them, and the schedules of both."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fastssl.distributed import Ranks
from fastssl.functional import dino_loss, sinkhorn, update_center

from ._crops import DINOHead, began, through, warmed
from ._teacher import Encoder, TeacherMethod


class PrototypeTeacher(TeacherMethod):
    """A ``TeacherMethod`` whose head ends in prototypes and whose teacher's scores are centred or balanced."""

    student_temperature: float
    teacher_temperatures: tuple[float, float]
    warmup: float
    frozen: float
    centering: str
    center_momentum: float
    center: Tensor

    def make_head(self, width: int, hidden_dim: int, bottleneck_dim: int, out_dim: int) -> DINOHead:
        return DINOHead(width, hidden_dim, bottleneck_dim, out_dim)

    @property
    def head(self) -> DINOHead:
        return cast(DINOHead, self.encoder.head)

    def schedules(self) -> tuple[float | Tensor, Tensor | None]:
        """The teacher's temperature at ``step``, and 0 or 1 for frozen or learning prototypes (None: they learn)."""
        temperature = warmed(self.step, self.total_steps, self.teacher_temperatures, self.warmup)
        return temperature, began(self.step, self.total_steps, self.frozen)

    def class_loss(self, student: Tensor, teacher: Tensor, balance: Tensor, temperature: float | Tensor, crops: int) -> Tensor:
        """student (S B, K), teacher (T B, K), balance (K,) of ``balanced`` -> the mean over all pairs of different crops."""
        batch = len(student) // crops
        student, teacher = (rows.view(-1, batch, rows.shape[1]) for rows in (student, teacher))
        center, potential = (balance, None) if self.centering == "center" else (None, balance)
        return dino_loss(
            student,
            teacher,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            potential=potential,
            group=Ranks(),
        )

    @torch.no_grad()
    def teach(self, global_crops: Sequence[Tensor]) -> tuple[Tensor, Tensor, float | Tensor, Tensor | None]:
        """Moves the teacher and asks it -> its scores (T B, K), what balances them (K,), its temperature, and 0 or 1 for frozen
        or learning prototypes."""
        temperature, learns = self.schedules()
        self.move_teacher()
        teacher = through(cast(Encoder, self.teacher), global_crops)
        return teacher, self.balanced(teacher, temperature, self.center), temperature, learns

    def balanced(self, teacher: Tensor, temperature: float | Tensor, center: Tensor) -> Tensor:
        """The centre for the teacher's scores (N, K), which moves afterwards in training mode, or Sinkhorn's potentials; (K,)."""
        if self.centering == "sinkhorn":
            return sinkhorn(teacher, temperature, 3, group=Ranks())
        before = center.clone()
        if self.training:
            update_center(center, teacher, self.center_momentum, group=Ranks())
        return before
