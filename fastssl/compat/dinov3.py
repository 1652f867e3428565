"""Drop-ins for ``dinov3.loss`` of facebookresearch/dinov3: the same names, arguments, state keys and scales.

Centres are NaN until ``init_weights``, as there. Where ``dinov3.distributed`` is loaded, centres and Sinkhorn's sums are those of
its subgroup of processes; otherwise of all, and alone they work too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastssl.checks import check_flag, check_whole
from fastssl.distributed.ranks import Ranks
from fastssl.loss.gram import gram_loss
from fastssl.loss.koleo import koleo
from fastssl.ops.soft_cross_entropy import soft_cross_entropy

from ._soft_targets import LateCenter, PatchLoss, balanced_targets
from .dinov2 import KoLeoLoss

__all__ = ["DINOLoss", "GramLoss", "KoLeoLoss", "KoLeoLossDistributed", "SinkhornKnoppTeacher", "iBOTPatchLoss"]

_PROCESSES = "dinov3.distributed"


class DINOLoss(LateCenter):
    """The loss of class tokens. The teacher's logits become probabilities first, centred or balanced.

    Args:
        out_dim: the number K of prototypes.
        student_temp: divides the student's logits.
        center_momentum: the share of the centre that is kept.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = DINOLoss(16)
        >>> criterion.init_weights()
        >>> student, teacher = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
        >>> targets = criterion.sinkhorn_knopp_teacher(teacher.flatten(0, 1), 0.04).view(2, 8, 16)
        >>> criterion(student, targets, ignore_diagonal=True).shape
        torch.Size([])
    """

    _module = _PROCESSES

    def __init__(self, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9):
        super().__init__("DINOLoss", (1, out_dim), student_temp, center_momentum, math.nan)
        self.len_teacher_output = None

    def init_weights(self) -> None:
        """Sets the centre to 0."""
        self.center.zero_()

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_output: Tensor, teacher_temp: float, update_centers: bool = True) -> Tensor:
        """Moves the centre if that is due, unless ``update_centers`` is False; the probabilities of logits (..., K)."""
        if update_centers:
            self.apply_center_update()
        return self._centred(teacher_output, teacher_temp)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(self, teacher_output: Tensor, teacher_temp: float, n_iterations: int = 3) -> Tensor:
        """Sinkhorn's assignment of logits (N, K), balanced over the processes; float32. Right for logits of any size."""
        return balanced_targets(teacher_output, teacher_temp, n_iterations, self._module)

    def forward(self, student_logits: Tensor, teacher_probs: Tensor, ignore_diagonal: bool = False) -> Tensor:
        """The mean over pairs of crops and images.

        Args:
            student_logits: (S, B, K).
            teacher_probs: (T, B, K).
            ignore_diagonal: leave out the pairs of crop t with itself.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``soft_cross_entropy``.
        """
        return soft_cross_entropy(
            student_logits,
            teacher_probs.detach(),
            student_temperature=self.student_temp,
            teacher_temperature=None,
            ignore_diagonal=ignore_diagonal,
        )


class SinkhornKnoppTeacher(nn.Module):
    """Sinkhorn's assignment of patches, as a module. Without ``.compile()`` it is as fast.

    Examples:
        >>> targets = SinkhornKnoppTeacher()(torch.randn(32, 16), 0.04, torch.tensor(32))
        >>> bool((targets.sum(1) - 1).abs().max() < 1e-5)
        True
    """

    @torch.no_grad()
    def forward(
        self, teacher_output: Tensor, teacher_temp: float, n_masked_patches_tensor: Tensor | None, n_iterations: int = 3
    ) -> Tensor:
        """The assignment (M, K) of logits (M, K), float32, balanced over the processes.

        The number of patches cancels, so ``n_masked_patches_tensor`` is neither read nor written; theirs adds it up over the
        processes, in place.
        """
        return balanced_targets(teacher_output, teacher_temp, n_iterations, _PROCESSES)


class iBOTPatchLoss(PatchLoss):
    """The loss of patches, as that of DINOv2; the centre is NaN until ``init_weights``.

    Args:
        patch_out_dim: the number K of prototypes.
        student_temp: divides the student's logits.
        center_momentum: the share of the centre that is kept.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = iBOTPatchLoss(16)
        >>> criterion.init_weights()
        >>> masks = torch.rand(4, 9) < 0.4
        >>> student, teacher = torch.randn(2, int(masks.sum()), 16)
        >>> targets = criterion.sinkhorn_knopp_teacher(teacher, 0.04, masks.sum())
        >>> criterion.forward_masked(student, targets, masks).shape
        torch.Size([])
    """

    _module = _PROCESSES

    def __init__(self, patch_out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9):
        super().__init__("iBOTPatchLoss", (1, 1, patch_out_dim), student_temp, center_momentum, math.nan)
        self.sinkhorn_knopp_teacher = SinkhornKnoppTeacher()

    def init_weights(self) -> None:
        """Sets the centre to 0."""
        self.center.zero_()

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_patch_tokens: Tensor, teacher_temp: float, update_centers: bool = True) -> Tensor:
        """Moves the centre if that is due, unless ``update_centers`` is False; the probabilities of logits (B, N, K)."""
        if update_centers:
            self.apply_center_update()
        return self._centred(teacher_patch_tokens, teacher_temp)


class KoLeoLossDistributed(nn.Module):
    """The regulariser that spreads the batch of all processes.

    Args:
        topk: how many neighbours of each row count.
        loss_group_size: neighbours are sought among this many consecutive rows of all processes; None: among all.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> KoLeoLossDistributed(topk=2)(torch.randn(8, 16)).shape
        torch.Size([])
    """

    def __init__(self, topk: int = 1, loss_group_size: int | None = None):
        super().__init__()
        self.topk, self.loss_group_size = check_whole("KoLeoLossDistributed", "topk", topk, 1), loss_group_size

    def forward(self, student_output: Tensor, eps: float = 1e-8) -> Tensor:
        """The mean loss of the own rows (B, D); arguments and errors as those of ``koleo``."""
        return koleo(student_output, topk=self.topk, eps=eps, group_size=self.loss_group_size, group=Ranks())


class GramLoss(nn.Module):
    """Gram anchoring: the mean squared difference of the cosines of patches with each other, student's and teacher's.

    Args:
        apply_norm: bring rows to unit length first.
        img_level: without effect, as there: ``forward`` has an argument of this name.
        remove_neg: negative entries of both matrices count as 0.
        remove_only_teacher_neg: negative entries of the teacher count as 0, and those of the student where both are negative.

    Raises:
        TypeError, ValueError: something else than True or False, or both ways to remove negative entries.

    Examples:
        >>> round(GramLoss()(torch.eye(2)[None], torch.ones(1, 2, 2)).item(), 4)  # cosines 0 and 1 beside the diagonal
        0.5
    """

    def __init__(
        self, apply_norm: bool = True, img_level: bool = True, remove_neg: bool = True, remove_only_teacher_neg: bool = False
    ):
        super().__init__()
        flags = {"apply_norm": apply_norm, "img_level": img_level, "remove_neg": remove_neg}
        for name, value in (flags | {"remove_only_teacher_neg": remove_only_teacher_neg}).items():
            check_flag("GramLoss", name, value)
        if remove_neg and remove_only_teacher_neg:
            raise ValueError("GramLoss: remove_neg and remove_only_teacher_neg must not both be True")
        self.apply_norm, self.remove_neg, self.remove_only_teacher_neg = apply_norm, remove_neg, remove_only_teacher_neg

    def forward(self, output_feats: Tensor, target_feats: Tensor, img_level: bool = True) -> Tensor:
        """The mean over all entries of the matrices.

        Args:
            output_feats: (B, N, D) of the student; (N, D) for one matrix of all.
            target_feats: the teacher's, of as many rows. A constant.
            img_level: a matrix for each image; False: one of all B N rows.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``gram_loss``.
        """
        target_feats = target_feats.detach()
        if output_feats.dtype != target_feats.dtype:
            dtype = torch.promote_types(output_feats.dtype, target_feats.dtype)
            output_feats, target_feats = output_feats.to(dtype), target_feats.to(dtype)
        return gram_loss(
            output_feats,
            target_feats,
            normalize=self.apply_norm,
            image_level=img_level,
            remove_negative=self.remove_neg,
            remove_only_teacher_negative=self.remove_only_teacher_neg,
        )
