"""Mean teacher (Tarvainen and Valpola 2017): a classifier of few labels, and a teacher that it must agree with on every image.

    s = student(view0)    t = teacher(view1)    loss = cross-entropy of the labelled rows of s + w mean (softmax s - softmax t)^2

The mean is over rows and classes. w grows as ``consistency_weight`` exp(-5 (1 - u)^2), u the part done of the first share
``ramp_up`` of all steps, and stays at ``consistency_weight`` from there on.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_number, check_vector, check_whole, readable

from ._recompute import once
from ._teacher import TeacherMethod


class MeanTeacher(TeacherMethod):
    """Mean teacher around any encoder: ``MeanTeacher(backbone, 10)(view0, view1, labels)`` is the loss.

    Args:
        backbone: inputs (B, ...) -> features (B, feature_dim), or maps, a mapping or a tuple: docs/methods.md, Encoders.
        num_classes: C.
        feature_dim: width of the features; by default found by a probe.
        consistency_weight: of the agreement, at the end of its ramp. The authors' code has 100 for CIFAR-10.
        ramp_up: share of ``total_steps`` over which that weight grows; without ``total_steps`` it is whole from the first.
        momentum: share of the teacher that is kept at the first step.
        final_momentum: the share that it reaches over ``total_steps`` along half a cosine, where the paper goes from 0.99 to 0.999
            in one step at the end of the ramp.
        total_steps: steps of the training; None: the momentum stays.

    ``embed`` and ``classify`` are the teacher's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        feature_dim: int | None = None,
        *,
        consistency_weight: float = 100.0,
        ramp_up: float = 0.25,
        momentum: float = 0.99,
        final_momentum: float | None = 0.999,
        total_steps: int | None = None,
    ):
        num_classes = check_whole("MeanTeacher", "num_classes", num_classes, 2)
        check_number("MeanTeacher", "consistency_weight", consistency_weight, 0.0)
        check_number("MeanTeacher", "ramp_up", ramp_up)
        if not 0 <= ramp_up <= 1:
            raise ValueError(f"MeanTeacher: ramp_up must be in [0, 1], a share of total_steps, got {ramp_up}")
        super().__init__(backbone, feature_dim, lambda width: nn.Linear(width, num_classes), momentum, final_momentum, total_steps)
        self.num_classes, self.consistency_weight, self.ramp_up = num_classes, consistency_weight, ramp_up

    def embed(self, images: Tensor) -> Tensor:
        """images (B, ...) -> features (B, feature_dim) of the teacher's backbone."""
        return self.teacher.module.features(images)

    def classify(self, images: Tensor) -> Tensor:
        """images (B, ...) -> the teacher's logits (B, num_classes)."""
        return self.target(images)

    def current_weight(self) -> float | Tensor:
        """The weight of the agreement at ``step``."""
        if self.total_steps is None or self.ramp_up == 0:
            return self.consistency_weight
        missing = 1.0 - (self.step / (self.ramp_up * self.total_steps)).clamp(max=1.0)
        return self.consistency_weight * torch.exp(-5.0 * missing.square())

    def forward(self, view0: Tensor, view1: Tensor, labels: Tensor) -> Tensor:
        """Two views (B, ...) of the same B samples, B >= 2; labels (B,) integers, -1 where there is none -> scalar float32.

        Training moves the teacher. A batch without labels has the agreement alone.
        """
        self.check_views(view0, view1)
        check_vector("MeanTeacher", "labels", labels, len(view0), INTEGERS, "view0", view0)
        if readable(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            bounds = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"MeanTeacher: labels must lie in -1 to {self.num_classes - 1} (num_classes), got {bounds}")
        student = self.encoder(view0).float()
        weight, teacher = once(self, view0, lambda: (self.current_weight(), self.targets(view1)[0].float()))
        known = (labels >= 0).sum().clamp_min(1)
        supervised = nn.functional.cross_entropy(student, labels.long(), ignore_index=-1, reduction="sum") / known
        return supervised + weight * nn.functional.mse_loss(student.softmax(1), teacher.softmax(1))
