"""DINO's, iBOT's and SwAV's losses as modules with lightly's names, arguments and state keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice, check_flag, check_number, check_share, check_whole
from fastssl.distributed.ranks import Ranks
from fastssl.ops.soft_cross_entropy import soft_cross_entropy

from .dino import dino_loss, ibot_loss, patch_weights, update_center
from .sinkhorn import MOST_ITERATIONS, sinkhorn
from .swav import swav_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CENTER_MODES = ("mean", "sinkhorn_knopp")
#: All processes where there are several; a sum over rows needs no exchange of their numbers beforehand.
_EVERYONE = Ranks(even=True)


def stacked(op: str, name: str, crops: Sequence[Tensor] | Tensor) -> Tensor:
    """Crops (B, K) of one shape as one tensor (crops, B, K); a tensor of three dimensions is that already."""
    if isinstance(crops, Tensor):
        if crops.dim() != 3:
            raise ValueError(f"{op}: {name} must be a list of tensors (B, K) or a tensor (crops, B, K), got {tuple(crops.shape)}")
        return crops
    if not isinstance(crops, Sequence) or not crops or not all(isinstance(crop, Tensor) for crop in crops):
        raise TypeError(f"{op}: {name} must be a list of at least one tensor (B, K), got {type(crops).__name__}")
    shapes = [tuple(crop.shape) for crop in crops]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{op}: {name} must hold tensors of one shape (B, K), got {shapes}")
    return crops[0][None] if len(crops) == 1 else torch.stack(tuple(crops))


def check_columns(op: str, teacher: Tensor, output_dim: int) -> None:
    """Refuses logits (..., K) of another number of prototypes than the centre was made for."""
    if teacher.dim() and teacher.shape[-1] != output_dim:
        raise ValueError(f"{op}: teacher_out must have output_dim = {output_dim} columns, got shape {tuple(teacher.shape)}")


def check_temperatures(op: str, **values: float) -> None:
    """Numbers above 0 that float32 holds."""
    for name, value in values.items():
        check_number(op, name, value, 0.0, torch.finfo(torch.float32).max)
        if value == 0:
            raise ValueError(f"{op}: {name} must be above 0, got {value}")


class DINOLoss(nn.Module):
    """``dino_loss`` and its centre, with the arguments of lightly's ``DINOLoss``.

    The centre is moved after each loss. Where several processes train together, it is moved by the rows of all of them, whatever
    their numbers.

    Args:
        output_dim: the number K of prototypes.
        warmup_teacher_temp: the teacher's temperature at the first epoch.
        teacher_temp: the teacher's temperature after the warm-up.
        warmup_teacher_temp_epochs: epochs over which it goes from one to the other, linearly; it counts where ``forward`` is given
            an epoch.
        student_temp: the student's temperature.
        center_momentum: the share of the centre that is kept, in [0, 1].
        center_mode: "mean": the teacher's logits are centred. "sinkhorn_knopp": they are balanced by Sinkhorn's algorithm, over
            all processes, and the centre stays as it is (DINOv2, DINOv3).
        sinkhorn_iterations: passes of Sinkhorn's algorithm.
        heads: sizes of nested heads whose sum is K, each with a softmax of its own.
        group: the loss, too, is that of all processes of this group, with the exact mean over uneven batches. None: the mean over
            the own images, as in lightly, which is the same where batches are even.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = DINOLoss(output_dim=16)
        >>> teacher_out, student_out = list(torch.randn(2, 8, 16)), list(torch.randn(4, 8, 16, requires_grad=True))
        >>> criterion(teacher_out, student_out, epoch=0).backward()
        >>> list(criterion.state_dict()), criterion.center.shape
        (['center'], torch.Size([1, 1, 16]))
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
        *,
        sinkhorn_iterations: int = 3,
        heads: list[int] | None = None,
        group: ProcessGroup | Ranks | None = None,
    ):
        super().__init__()
        op = "DINOLoss"
        output_dim = check_whole(op, "output_dim", output_dim, 1)
        check_temperatures(op, warmup_teacher_temp=warmup_teacher_temp, teacher_temp=teacher_temp, student_temp=student_temp)
        epochs = check_whole(op, "warmup_teacher_temp_epochs", warmup_teacher_temp_epochs, 0)
        check_share(op, "center_momentum", center_momentum, ", the share that is kept")
        check_choice(op, "center_mode", center_mode, CENTER_MODES)
        self.teacher_temp, self.student_temp, self.center_momentum = teacher_temp, student_temp, center_momentum
        self.warmup_teacher_temp = warmup_teacher_temp
        self.center_mode, self.heads, self.group = center_mode, heads, group
        self.sinkhorn_iterations = check_whole(op, "sinkhorn_iterations", sinkhorn_iterations, 1, MOST_ITERATIONS + 1)
        self.register_buffer("center", torch.zeros(1, 1, output_dim))
        self.warmup_teacher_temp_epochs = epochs
        self.teacher_temp_schedule = torch.linspace(float(warmup_teacher_temp), float(teacher_temp), epochs, device="cpu")

    def forward(
        self,
        teacher_out: Sequence[Tensor] | Tensor,
        student_out: Sequence[Tensor] | Tensor,
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """The mean over pairs of different crops and images; the centre is moved afterwards.

        Args:
            teacher_out: the teacher's logits (B, K) of each global crop, a list or a tensor (T, B, K). A constant.
            student_out: the student's logits (B, K) of each crop, the global ones first, a list or a tensor (S, B, K).
            teacher_temp: the teacher's temperature of this call.
            epoch: without ``teacher_temp``, the temperature is that of the warm-up at this epoch.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``dino_loss``; the centre is unchanged then.
        """
        student, teacher = stacked("DINOLoss", "student_out", student_out), stacked("DINOLoss", "teacher_out", teacher_out)
        teacher, temperature = teacher.detach(), self._temperature(teacher_temp, epoch)
        how: dict[str, Any] = {"student_temperature": self.student_temp, "teacher_temperature": temperature, "heads": self.heads}
        if self.center_mode == "mean":
            check_columns("DINOLoss", teacher, self.center.shape[-1])
            loss = dino_loss(student, teacher, self.center, group=self.group, **how)
            self.update_center(teacher)
            return loss
        group = self.group or _EVERYONE
        potential = sinkhorn(teacher, temperature, self.sinkhorn_iterations, heads=self.heads, group=group)
        return dino_loss(student, teacher, potential=potential, group=self.group, **how)

    def _temperature(self, teacher_temp: float | None, epoch: int | None) -> float:
        if teacher_temp is not None:
            return teacher_temp
        if epoch is None or epoch >= self.warmup_teacher_temp_epochs:
            return self.teacher_temp
        epoch = check_whole("DINOLoss", "epoch", epoch, 0)
        if not torch.compiler.is_compiling():
            return float(self.teacher_temp_schedule[epoch])
        warmup = self.warmup_teacher_temp  # a graph does not read a tensor
        return warmup + (self.teacher_temp - warmup) * epoch / max(1, self.warmup_teacher_temp_epochs - 1)

    def update_center(self, teacher_out: Tensor) -> None:
        """Moves the centre by the mean of logits (T, B, K), over the rows of all processes."""
        update_center(self.center, teacher_out, self.center_momentum, self.group or _EVERYONE)


class Center(nn.Module):
    """A centre of logits that moves with them, under the names of lightly's ``Center``: its state key is ``center``.

    Args:
        size: (1, ..., K), as many dimensions as the logits have.
        mode: "mean", or "sinkhorn_knopp", with which it never moves.
        momentum: the share that is kept, in [0, 1].
    """

    center: Tensor

    def __init__(self, size: tuple[int, ...], mode: str = "mean", momentum: float = 0.9):
        super().__init__()
        check_choice("Center", "mode", mode, CENTER_MODES)
        check_share("Center", "momentum", momentum, ", the share that is kept")
        self.size, self.mode, self.momentum = size, mode, momentum
        self.dim = tuple(d for d, extent in enumerate(size) if extent == 1)
        self.register_buffer("center", torch.zeros(size))

    @property
    def value(self) -> Tensor:
        """The centre as it is now."""
        return self.center

    def update(self, x: Tensor, group: ProcessGroup | Ranks | None = None) -> None:
        """Moves the centre by the mean of logits x (..., K) over the rows of all processes, or of those of ``group``."""
        if self.mode == "mean":
            update_center(self.center, x, self.momentum, group or _EVERYONE)


class IBOTPatchLoss(nn.Module):
    """``ibot_loss`` and its centre, with the arguments of lightly's ``IBOTPatchLoss``.

    Args:
        output_dim: the number K of prototypes.
        teacher_temp, student_temp: temperatures.
        center_mode, sinkhorn_iterations, heads, group: as in ``DINOLoss``.
        center_momentum: the share of the centre that is kept, in [0, 1].

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = IBOTPatchLoss(output_dim=16)
        >>> mask = torch.rand(4, 3, 3) < 0.4
        >>> teacher_out, student_out = torch.randn(2, int(mask.sum()), 16)
        >>> criterion(teacher_out, student_out, mask).shape, list(criterion.state_dict())
        (torch.Size([]), ['center.center'])
    """

    def __init__(
        self,
        output_dim: int = 65536,
        teacher_temp: float = 0.04,
        student_temp: float = 0.1,
        center_mode: str = "mean",
        center_momentum: float = 0.9,
        *,
        sinkhorn_iterations: int = 3,
        heads: list[int] | None = None,
        group: ProcessGroup | Ranks | None = None,
    ):
        super().__init__()
        op = type(self).__name__
        output_dim = check_whole(op, "output_dim", output_dim, 1)
        check_temperatures(op, teacher_temp=teacher_temp, student_temp=student_temp)
        check_choice(op, "center_mode", center_mode, CENTER_MODES)
        self.teacher_temp, self.student_temp = teacher_temp, student_temp
        self.center_mode, self.heads, self.group = center_mode, heads, group
        self.sinkhorn_iterations = check_whole(op, "sinkhorn_iterations", sinkhorn_iterations, 1, MOST_ITERATIONS + 1)
        self.center = Center((1, output_dim), center_mode, center_momentum)

    def forward(self, teacher_out: Tensor, student_out: Tensor, mask: Tensor, teacher_temp: float | None = None) -> Tensor:
        """The sum over masked patches, each divided by their number in its image, divided by the images; then the centre moves.

        Args:
            teacher_out: (M, K) the teacher's logits of the masked patches, image after image. A constant.
            student_out: (M, K) the student's.
            mask: (B, H, W) bool with M patches that are True. Their number is checked on a CPU alone.
            teacher_temp: the teacher's temperature of this call.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``ibot_loss``; the centre is unchanged then.
        """
        weight = patch_weights(mask, rows=len(student_out))
        return self._of_patches(teacher_out, student_out, weight, mask.shape[0], teacher_temp)

    def _of_patches(self, teacher_out: Tensor, student_out: Tensor, weight: Tensor | None, images, teacher_temp) -> Tensor:
        student, teacher = student_out, teacher_out.detach()
        temperature = self.teacher_temp if teacher_temp is None else teacher_temp
        how: dict[str, Any] = {"student_temperature": self.student_temp, "teacher_temperature": temperature, "heads": self.heads}
        how |= {"weight": weight, "images": images, "group": self.group}
        if self.center_mode == "sinkhorn_knopp":
            group = self.group or _EVERYONE
            potential = sinkhorn(teacher, temperature, self.sinkhorn_iterations, heads=self.heads, group=group)
            return ibot_loss(student, teacher, potential=potential, **how)
        check_columns(type(self).__name__, teacher, self.center.value.shape[-1])
        loss = ibot_loss(student, teacher, self.center.value, **how)
        self.center.update(teacher, self.group)
        return loss


class IBOTPlusPlusPatchLoss(IBOTPatchLoss):
    """iBOT's loss of all patches (iBOT++ of TIPSv2), with lightly's arguments, which are those of ``IBOTPatchLoss``.

    Examples:
        >>> criterion = IBOTPlusPlusPatchLoss(output_dim=16)
        >>> teacher_out, student_out, mask = torch.randn(4, 9, 16), torch.randn(4, 9, 16), torch.rand(4, 9) < 0.4
        >>> criterion(teacher_out, student_out, mask).shape
        torch.Size([])
    """

    def forward(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor | None = None,
        teacher_temp: float | None = None,
        visible_loss_weight: float = 1.0,
    ) -> Tensor:
        """The mean over images of the mean over masked patches and, times ``visible_loss_weight``, that over visible ones.

        Args:
            teacher_out: (B, N, K) or (B N, K) the teacher's logits of all patches. A constant.
            student_out: the student's, of the same shape.
            mask: (B, N) or (B, H, W) bool, True where masked; needed with (B N, K). None: the mean over all patches.
            teacher_temp: the teacher's temperature of this call.
            visible_loss_weight: what the visible patches of an image count together, against 1 for the masked ones.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``ibot_loss``, or shapes that do not belong together; the centre is unchanged then.
        """
        op = "IBOTPlusPlusPatchLoss"
        if teacher_out.shape != student_out.shape or teacher_out.dim() not in (2, 3):
            shapes = f"{tuple(teacher_out.shape)} and {tuple(student_out.shape)}"
            raise ValueError(f"{op}: teacher_out and student_out must have one shape, (B, N, K) or (B N, K), got {shapes}")
        if mask is None and teacher_out.dim() == 2:
            raise ValueError(f"{op}: mask must be given with patches (B N, K), got None")
        teacher_out, student_out, images = teacher_out.flatten(0, -2), student_out.flatten(0, -2), None
        weight = None
        if mask is not None:
            if mask.numel() != len(student_out):
                raise ValueError(f"{op}: mask must have {len(student_out)} entries, one for each patch, got {tuple(mask.shape)}")
            weight, images = patch_weights(mask, visible_loss_weight).flatten(), mask.shape[0]
        return self._of_patches(teacher_out, student_out, weight, images, teacher_temp)


class SwaVLoss(nn.Module):
    """``swav_loss`` with the arguments of lightly's ``SwaVLoss``; ``SwAVLoss`` is the same class.

    Args:
        temperature: divides the logits of a prediction.
        sinkhorn_iterations: passes of Sinkhorn's algorithm.
        sinkhorn_epsilon: divides the logits of a code.
        sinkhorn_gather_distributed: in several processes, codes are balanced and the mean is taken over the images of all of them,
            uneven batches included; as ``swav_loss(group=Ranks())``.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = SwaVLoss()
        >>> high, low = list(torch.randn(2, 8, 30, requires_grad=True)), list(torch.randn(6, 8, 30, requires_grad=True))
        >>> criterion(high, low).backward()
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ):
        super().__init__()
        op = "SwaVLoss"
        check_temperatures(op, temperature=temperature, sinkhorn_epsilon=sinkhorn_epsilon)
        check_flag(op, "sinkhorn_gather_distributed", sinkhorn_gather_distributed)
        if sinkhorn_gather_distributed and not torch.distributed.is_available():
            raise ValueError(f"{op}: sinkhorn_gather_distributed=True needs torch.distributed, which this torch build lacks")
        self.temperature, self.sinkhorn_epsilon = temperature, sinkhorn_epsilon
        self.sinkhorn_iterations = check_whole(op, "sinkhorn_iterations", sinkhorn_iterations, 1, MOST_ITERATIONS + 1)
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def subloss(self, z: Tensor, q: Tensor) -> Tensor:
        """The mean cross-entropy of predictions z (B, K) and codes q (B, K), which are probabilities."""
        return soft_cross_entropy(z, q.detach(), student_temperature=self.temperature, teacher_temperature=None)

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The mean over the codes of each high-resolution crop and the predictions of each other crop.

        Args:
            high_resolution_outputs: the products (B, K) of each global crop's embeddings with the prototypes.
            low_resolution_outputs: those of each local crop; may be an empty list.
            queue_outputs: (Q, K) for each global crop, of earlier embeddings.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``swav_loss``.
        """
        op = "SwaVLoss"
        logits = stacked(
            op, "high_resolution_outputs and low_resolution_outputs", [*high_resolution_outputs, *low_resolution_outputs]
        )
        return swav_loss(
            logits,
            None if queue_outputs is None else [rows.detach().to(logits.dtype) for rows in queue_outputs],
            assigned=len(high_resolution_outputs),
            student_temperature=self.temperature,
            teacher_temperature=self.sinkhorn_epsilon,
            iterations=self.sinkhorn_iterations,
            group=Ranks() if self.sinkhorn_gather_distributed else None,
        )
