"""DINO (Caron et al. 2021): each crop's softmax over prototypes is to be that of the teacher for another, large crop.

    s = head(encoder(crop)) / 0.1      t = (head(teacher(large crop)) - c) / T
    loss = mean over pairs of different crops of -sum_k softmax(t)_k log softmax(s)_k
    c <- m c + (1 - m) mean of the teacher's outputs

The head ends in K prototypes of unit length. The centre c, or in its place Sinkhorn's potentials, keeps all images from having one
prototype, and the low temperature T from having all of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._checks import check_positive, check_share, check_widths, given
from ._crops import check_centering, check_crops, check_part, first_and_last, through
from ._distillation import PrototypeTeacher
from ._recompute import once


class DINO(PrototypeTeacher):
    """DINO around any encoder: ``DINO(backbone)(global_crops, local_crops)`` is the loss to call ``backward`` on.

    Caron et al. 2021, https://arxiv.org/abs/2104.14294, section 3.1 and algorithm 1.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim), for crops of all sizes. It may also
            return maps, a mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        out_dim: number K of prototypes; the paper's is 65536.
        hidden_dim: width of the head's hidden layers; by default ``feature_dim``. The paper's is 2048.
        bottleneck_dim: width of the rows of unit length that are compared with the prototypes.
        student_temperature: above 0.
        teacher_temperature: above 0, or a pair (first, last): a line leads from the first to the last over ``warmup``.
        warmup: share of ``total_steps`` over which the teacher's temperature changes. Without ``total_steps`` it is the last one.
        frozen: share of ``total_steps`` in which the gradient of the prototypes is 0.
        centering: "center" subtracts a moving mean of the teacher's outputs; "sinkhorn" balances each batch, as DINOv2 does.
        center_momentum: share of the centre that a step keeps.
        momentum: share of the teacher that is kept at the first step.
        final_momentum: share that the momentum reaches over ``total_steps`` along half a cosine.
        total_steps: number of steps of the training. None: the momentum stays, and no schedule runs.

    With several processes loss, centre and Sinkhorn are those of one process with the joined batch.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> method = DINO(backbone, out_dim=32, bottleneck_dim=4, total_steps=100)
        >>> loss = method([torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8)], [torch.rand(5, 3, 4, 4)])
        >>> loss.shape, int(method.step)
        (torch.Size([]), 1)
    """

    joins_processes = True

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        out_dim: int = 65536,
        hidden_dim: int | None = None,
        bottleneck_dim: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: float | tuple[float, float] = (0.04, 0.07),
        warmup: float = 0.3,
        frozen: float = 0.01,
        centering: str = "center",
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        final_momentum: float | None = 1.0,
        total_steps: int | None = None,
    ):
        name = type(self).__name__
        check_positive(name, student_temperature=student_temperature)
        check_widths(name, out_dim=out_dim, bottleneck_dim=bottleneck_dim, **given(hidden_dim=hidden_dim))
        check_part(name, warmup=warmup, frozen=frozen)
        check_share(name, center_momentum=center_momentum)
        teacher_temperatures = first_and_last(name, "teacher_temperature", teacher_temperature)
        check_centering(name, centering)
        super().__init__(
            backbone,
            feature_dim,
            lambda width: self.make_head(width, hidden_dim or width, bottleneck_dim, out_dim),
            momentum,
            final_momentum,
            total_steps,
        )
        self.student_temperature, self.teacher_temperatures = student_temperature, teacher_temperatures
        self.warmup, self.frozen, self.centering, self.center_momentum = warmup, frozen, centering, center_momentum
        self.center: Tensor
        self.register_buffer("center", torch.zeros(out_dim))

    def forward(self, global_crops: Sequence[Tensor], local_crops: Sequence[Tensor] = ()) -> Tensor:
        """The loss of several crops of the same samples. In training mode the teacher moves before, and the centre after.

        Args:
            global_crops: T tensors (B, ...) float of one shape, which the teacher sees too; T and B are at least 2.
            local_crops: tensors (B, ...) float, which only the student sees. Neighbours of one shape are encoded in one call.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over all pairs of a crop and another crop of the teacher.

        Raises:
            TypeError: no lists of tensors, or crops of different dtypes or devices.
            ValueError: crops of different samples, fewer than two global crops, or a B below 2.
        """
        crops = check_crops(type(self).__name__, global_crops, local_crops)
        z = self.head.project(through(self.encoder.features, crops))
        teacher, balance, temperature, learns = once(self, crops[0], lambda: self.teach(global_crops))
        student = self.head.prototypes(z, learns)
        return self.class_loss(student, teacher, balance, temperature, len(crops))
