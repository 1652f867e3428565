"""What the methods with a teacher share: an encoder that can be averaged as a whole, the teacher's schedule, heads."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastssl.momentum import EMA, cosine_schedule

from ._checks import check_share, check_widths, given
from ._common import ImageMethod
from ._encoder import features_of
from ._layers import check_encoder, refuse_lazy


def mlp(*widths: int, last_norm: bool = False, last_bias: bool = True) -> nn.Sequential:
    """Linear layers (N, widths[0]) -> (N, widths[-1]) with batch normalisation and ReLU between them.

    ``last_norm``: batch normalisation without weights after the last one, as in SimSiam and MoCo v3. ``last_bias``: whether the
    last layer has a bias where no batch normalisation follows it.
    """
    layers: list[nn.Module] = []
    for before, width in pairwise(widths[:-1]):
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Backbone and head as one module, so that a teacher is the average of one module: images (N, ...) -> (N, D)."""

    def __init__(self, backbone: nn.Module, head: nn.Module, feature_dim: int, method: str):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.feature_dim, self.method = feature_dim, method

    def features(self, images: Tensor) -> Tensor:
        """images (N, ...) -> features (N, feature_dim) of the backbone."""
        return features_of(self.backbone, images, self.feature_dim, self.method)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class EncoderMethod(ImageMethod):
    """An ``ImageMethod`` whose backbone and head are one ``Encoder``; ``head`` makes the head from the width of the features."""

    def __init__(self, backbone: nn.Module, feature_dim: int | None, head: Callable[[int], nn.Module]):
        super().__init__(backbone, feature_dim)
        self.encoder = Encoder(backbone, head(self.feature_dim), self.feature_dim, type(self).__name__)

    @property
    def backbone(self) -> nn.Module:
        return self.encoder.backbone

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone: what evaluation and later tasks use.

        Args:
            images: (B, ...), what the backbone takes.

        Returns:
            (B, feature_dim), before any head.
        """
        return self.encoder.features(images)


def check_schedule(name: str, momentum: float, final_momentum: float | None, total_steps: int | None) -> None:
    """Refuses what is no schedule of a teacher's momentum."""
    check_share(name, momentum=momentum, **given(final_momentum=final_momentum))
    check_widths(name, **given(total_steps=total_steps))


class MovingTeacher(nn.Module):
    """A method with ``teacher``, the moving average of its ``student()``, and the schedule of its momentum.

    The teacher's batch norms keep statistics of their own forward passes. It moves in each forward in training mode, before it is
    asked, by what the optimizer did since the last one; ``step``, int64 (), counts its moves and is in the state dict.
    """

    teacher: EMA
    step: Tensor

    def student(self) -> nn.Module:
        """The module that the teacher follows."""
        raise NotImplementedError

    def add_teacher(self, momentum: float, final_momentum: float | None, total_steps: int | None) -> None:
        """Gives the method, which has its student by then, a teacher with the student's weights."""
        self.momentum, self.final_momentum, self.total_steps = momentum, final_momentum, total_steps
        self.teacher = EMA(self.student(), momentum, buffers="skip")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def current_momentum(self) -> float | Tensor:
        """The share that the next move keeps: on its cosine from ``momentum`` to ``final_momentum``, or constant without one."""
        if self.final_momentum is None or self.total_steps is None:
            return self.momentum
        return cosine_schedule(self.step, self.total_steps, start=self.momentum, end=self.final_momentum)

    def move_teacher(self) -> None:
        """teacher <- m teacher + (1 - m) encoder, in one launch and without host sync; nothing in evaluation mode."""
        if self.training:
            self.teacher.update(self.student(), self.current_momentum())
            self.step.add_(1)


class TeacherMethod(MovingTeacher, EncoderMethod):
    """An ``EncoderMethod`` with a teacher of its encoder, head included."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None,
        head: Callable[[int], nn.Module],
        momentum: float,
        final_momentum: float | None,
        total_steps: int | None,
    ):
        name = type(self).__name__
        check_encoder(backbone, name)
        refuse_lazy(backbone, name)
        check_schedule(name, momentum, final_momentum, total_steps)
        super().__init__(backbone, feature_dim, head)
        self.add_teacher(momentum, final_momentum, total_steps)

    def student(self) -> nn.Module:
        return self.encoder

    def targets(self, *views: Tensor) -> list[Tensor]:
        """Moves the teacher, and then asks it: its outputs (N, D) for each view (N, ...). Methods call this inside ``once``."""
        self.move_teacher()
        return [self.target(view) for view in views]

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """images (N, ...) -> the teacher's output (N, D), without gradient."""
        return self.teacher(images)
