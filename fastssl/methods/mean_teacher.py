"""Mean teacher (Tarvainen and Valpola 2017): a classifier of few labels, and a teacher that it must agree with on every image.

    s = student(view0)    t = teacher(view1)    loss = cross-entropy of the labelled rows of s + w mean (softmax s - softmax t)^2

The mean is over rows and classes. w grows as ``consistency_weight`` exp(-5 (1 - u)^2), u the part done of the first share
``ramp_up`` of all steps, and stays at ``consistency_weight`` from there on.
"""

from typing import cast

import torch
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole

from ._classifier import check_labels, known_loss
from ._recompute import once
from ._teacher import Encoder, TeacherMethod


class MeanTeacher(TeacherMethod):
    """Mean teacher around any encoder: ``MeanTeacher(backbone, 10)(view0, view1, labels)`` is the loss.

    Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        num_classes: number C of classes, at least 2.
        feature_dim: width of the features. By default a probe finds it.
        consistency_weight: weight of the agreement at the end of its ramp. The authors' code has 100 for CIFAR-10.
        ramp_up: share of ``total_steps`` over which that weight grows. Without ``total_steps`` it is whole from the first step.
        momentum: share of the teacher that is kept at the first step.
        final_momentum: share that the momentum reaches over ``total_steps`` along half a cosine, where the paper goes from 0.99 to
            0.999 in one step at the end of the ramp.
        total_steps: number of steps of the training. None: the momentum stays.

    ``embed`` and ``classify`` are the teacher's.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = MeanTeacher(backbone, num_classes=3)
        >>> view0, view1 = torch.rand(2, 5, 3, 2, 2)
        >>> method(view0, view1, torch.tensor([0, 2, -1, -1, -1])).shape, method.classify(view0).shape
        (torch.Size([]), torch.Size([5, 3]))
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
        return cast(Encoder, self.teacher.module).features(images)

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
        """The loss of two views. In training mode the teacher moves before. A batch without labels has the agreement alone.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.
            labels: (B,) integers, -1 where a sample has no label.

        Returns:
            Scalar float32.

        Raises:
            TypeError: views of different dtypes or devices, or labels that are no integers.
            ValueError: views of different shapes, a B below 2, or labels of another length or outside of the classes.
        """
        self.check_views(view0, view1)
        check_labels("MeanTeacher", labels, view0, "view0", self.num_classes)
        student = self.encoder(view0).float()
        weight, teacher = once(self, view0, lambda: (self.current_weight(), self.targets(view1)[0].float()))
        return known_loss(student, labels) + weight * nn.functional.mse_loss(student.softmax(1), teacher.softmax(1))
