"""What the drop-ins for DINO, DINOv2, DINOv3, SwAV and solo-learn share: crops in lists, targets as probabilities, late centres."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_number, check_whole
from fastssl.distributed.ranks import Ranks
from fastssl.loss.dino import dino_loss, ibot_loss, move_center, patch_weights, row_sums
from fastssl.loss.dino_modules import stacked
from fastssl.loss.sinkhorn import sinkhorn
from fastssl.ops.soft_cross_entropy import soft_cross_entropy

from ._common import check_share

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def everyone(module: str | None = None) -> Ranks:
    """All processes, or those of the subgroup that a loaded module of DINOv3 has made; alone, where there are none."""
    find = getattr(sys.modules.get(module or ""), "get_process_subgroup", None)
    group: ProcessGroup | None = find() if find is not None and torch.distributed.is_initialized() else None
    return Ranks(group, even=True)


def temperature_schedule(op: str, first: float, last: float, warmup: int, epochs: int) -> np.ndarray:
    """float64 (epochs,): ``warmup`` values in a line from ``first`` to ``last``, which then stays."""
    for name, value in (("warmup_teacher_temp", first), ("teacher_temp", last)):
        check_number(op, name, value, 0.0)
    warmup, epochs = check_whole(op, "warmup_teacher_temp_epochs", warmup, 0), check_whole(op, "nepochs", epochs, 0)
    if warmup > epochs:
        raise ValueError(f"{op}: warmup_teacher_temp_epochs must be at most the {epochs} epochs, got {warmup}")
    return np.concatenate([np.linspace(first, last, warmup), np.full(epochs - warmup, float(last))])


def in_crops(op: str, name: str, rows: Tensor, crops: int) -> Tensor:
    """Logits (crops B, K), crop after crop, as (crops, B, K)."""
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) % crops or not len(rows):
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"{op}: {name} must be (crops B, K) with {crops} crops, got {got}")
    return rows.unflatten(0, (crops, -1))


def chunked_loss(op: str, module: Any, student: Tensor, teacher: Tensor, crops: int, temperature: float) -> Tensor:
    """DINO's loss of logits (crops B, K) and (2 B, K), centred with the module's centre, in its temperature."""
    student, teacher = in_crops(op, "student_output", student, crops), in_crops(op, "teacher_output", teacher.detach(), 2)
    return dino_loss(
        student, teacher, module.center, student_temperature=module.student_temp, teacher_temperature=float(temperature)
    )


def crops_of(op: str, name: str, crops: Sequence[Tensor] | Tensor) -> Tensor:
    """Crops (B, K) as (crops, B, K), without a copy where they are the chunks of one tensor, as DINOv2 has them."""
    if isinstance(crops, (list, tuple)) and len(crops) > 1 and not torch.compiler.is_compiling():
        base = getattr(crops[0], "_base", None)
        if (
            base is not None
            and _starts_a_row(crops[0], base)
            and all(_is_part(crop, crops[0], base, i) for i, crop in enumerate(crops))
        ):
            first, count = (crops[0].storage_offset() - base.storage_offset()) // crops[0].shape[1], len(crops) * len(crops[0])
            rows = base.flatten(0, -2)
            if count == len(rows) or not base.requires_grad:  # the gradient of a part would be as large as the whole, zeros around
                return rows[first : first + count].view(len(crops), *crops[0].shape)
    return stacked(op, name, crops)


def _starts_a_row(crop: Tensor, base: Tensor) -> bool:
    """Whether ``crop`` (B, K) begins where a row of ``base`` (..., K) does."""
    return crop.dim() == 2 and (crop.storage_offset() - base.storage_offset()) % crop.shape[1] == 0


def _is_part(crop: Tensor, like: Tensor, base: Tensor, place: int) -> bool:
    """Whether ``crop`` is number ``place`` of equal chunks of the rows of ``base``, in the graph too, and nobody watches it."""
    if crop.dim() != 2 or crop.shape != like.shape or crop._base is not base or base.dim() < 2 or base.shape[-1] != crop.shape[1]:
        return False
    in_graph = crop.requires_grad == base.requires_grad and (crop.grad_fn is not None or not crop.requires_grad)
    unseen = not crop._backward_hooks and not crop.retains_grad
    plain = base.is_contiguous() and crop.is_contiguous()
    return in_graph and unseen and plain and crop.storage_offset() == like.storage_offset() + place * crop.numel()


@torch.no_grad()
def targets(teacher: Tensor, bias: Tensor, temperature: float | Tensor) -> Tensor:
    """softmax((teacher + bias) / temperature), float32 (float64 for float64 logits)."""
    shifted = teacher.detach() + bias.to(accumulator_dtype(teacher))
    return torch.softmax(shifted.div_(temperature), -1)


@torch.no_grad()
def balanced_targets(teacher: Tensor, temperature: float, iterations: int, module: str | None) -> Tensor:
    """Sinkhorn's assignment (N, K) of logits (N, K), over the rows of all processes."""
    rows = teacher.detach().flatten(0, -2)
    bias = sinkhorn(rows, temperature, iterations, group=everyone(module))
    return targets(rows, bias, temperature).view(teacher.shape)


class LateCenter(nn.Module):
    """A centre that ``update_center`` prepares and the next call of ``softmax_center_teacher`` moves, as in DINOv2.

    The sum over the rows of all processes is formed at once. ``shape``: that of the centre; ``_module``: where the subgroup of
    processes is found.
    """

    center: Tensor
    _module: str | None = None

    def __init__(self, op: str, shape: tuple[int, ...], student_temp: float, center_momentum: float, value: float = 0.0):
        super().__init__()
        check_whole(op, "the number of prototypes", shape[-1], 1)
        check_number(op, "student_temp", student_temp, 0.0)
        check_share(op, "center_momentum", center_momentum)
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.full(shape, value))
        self.updated = True
        self.reduce_handle = None
        self.async_batch_center: tuple[Tensor, Tensor] | None = None

    def update_center(self, teacher_output: Tensor) -> None:
        """Prepares the next centre: the mean over the rows of all processes of logits (..., K)."""
        self.reduce_center_update(teacher_output)

    def reduce_center_update(self, teacher_output: Tensor) -> None:
        """The same."""
        self.async_batch_center = row_sums(type(self).__name__, teacher_output, everyone(self._module))
        self.updated = False

    def apply_center_update(self) -> None:
        """Moves the centre, in place, if ``update_center`` has prepared a new one."""
        if self.updated or self.async_batch_center is None:
            return
        move_center(self.center, *self.async_batch_center, self.center_momentum)
        self.updated, self.async_batch_center = True, None

    def _centred(self, teacher: Tensor, temperature: float) -> Tensor:
        return targets(teacher, -self.center, temperature)


def listed_loss(op: str, student: Sequence[Tensor] | Tensor, teacher: Sequence[Tensor] | Tensor, temperature: float) -> Tensor:
    """DINOv2's sum over all pairs of crops of the mean over images, of student's logits and teacher's probabilities."""
    student, teacher = crops_of(op, "student_output_list", student), crops_of(op, "teacher_out_softmaxed_centered_list", teacher)
    pairs = student.shape[0] * teacher.shape[0]
    return pairs * soft_cross_entropy(student, teacher.detach(), student_temperature=temperature, teacher_temperature=None)


class PatchLoss(LateCenter):
    """What the patch losses of DINOv2 and DINOv3 share: logits of the student, probabilities of the teacher."""

    def __init__(self, op: str, shape: tuple[int, ...], student_temp: float, center_momentum: float, value: float = 0.0):
        super().__init__(op, shape, student_temp, center_momentum, value)
        self.len_teacher_patch_tokens = None

    def forward(self, student_patch_tokens: Tensor, teacher_patch_tokens: Tensor, student_masks_flat: Tensor) -> Tensor:
        """The mean over images of the mean over their masked patches.

        Args:
            student_patch_tokens: (B, N, K) logits.
            teacher_patch_tokens: (B, N, K) probabilities.
            student_masks_flat: (B, N) bool, True where masked.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``ibot_loss``.
        """
        weight = student_masks_flat.to(torch.float32) / student_masks_flat.sum(-1, keepdim=True).clamp(min=1.0)
        student, teacher = student_patch_tokens.flatten(0, 1), teacher_patch_tokens.flatten(0, 1)
        return self._weighted(student, teacher, weight.flatten(), len(student_masks_flat))

    def forward_masked(
        self,
        student_patch_tokens_masked: Tensor,
        teacher_patch_tokens_masked: Tensor,
        student_masks_flat: Tensor,
        n_masked_patches: int | None = None,
        masks_weight: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum over masked patches, divided by all images; the weight is 1 / (masked patches of the image).

        Args:
            student_patch_tokens_masked: (M, K) logits.
            teacher_patch_tokens_masked: (M, K) probabilities.
            student_masks_flat: (B, N) bool, True where masked.
            n_masked_patches: how many of the M rows count, the first ones.
            masks_weight: the weights, in place of those of the masks.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``ibot_loss``.
        """
        student, teacher = student_patch_tokens_masked, teacher_patch_tokens_masked
        if n_masked_patches is not None:
            teacher = teacher[:n_masked_patches]
            if n_masked_patches < len(student):  # a slice of all rows would copy the gradient
                student = student[:n_masked_patches]
        if masks_weight is None:
            masks_weight = patch_weights(student_masks_flat, rows=len(student))
        return self._weighted(student, teacher, masks_weight.detach(), len(student_masks_flat))

    def _weighted(self, student: Tensor, teacher: Tensor, weight: Tensor, images: int) -> Tensor:
        """Logits and probabilities (M, K) and a weight (M,); a row of weight 0 is not read."""
        return ibot_loss(
            student,
            teacher.detach(),
            student_temperature=self.student_temp,
            teacher_temperature=None,
            weight=weight,
            images=images,
        )
