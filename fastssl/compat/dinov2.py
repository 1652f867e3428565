"""Drop-ins for ``dinov2.loss`` of facebookresearch/dinov2: the same names, arguments, state keys and scales.

Sums where theirs are sums: ``DINOLoss`` adds the pairs of crops, and the trainer divides by their number. All of it works alone,
without a process group. Centres and Sinkhorn's sums are over the rows of all processes, uneven numbers of them included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastssl.loss.koleo import koleo
from fastssl.loss.parts.local_rows import rows_of_all

from ._soft_targets import LateCenter, PatchLoss, balanced_targets, listed_loss

__all__ = ["DINOLoss", "KoLeoLoss", "iBOTPatchLoss"]


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
        >>> student, teacher = torch.randn(4, 8, 16), torch.randn(16, 16)  # 4 local crops, 2 global ones of 8 images
        >>> for targets in (criterion.softmax_center_teacher(teacher, 0.04), criterion.sinkhorn_knopp_teacher(teacher, 0.04)):
        ...     loss = criterion(student.unbind(), targets.view(2, 8, 16)) / (4 * 2)
        >>> criterion.update_center(teacher)  # takes effect at the next softmax_center_teacher
    """

    def __init__(self, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9):
        super().__init__("DINOLoss", (1, out_dim), student_temp, center_momentum)
        self.len_teacher_output = None

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_output: Tensor, teacher_temp: float) -> Tensor:
        """Moves the centre if that is due; the probabilities of logits (..., K), float32 (float64 for float64 logits)."""
        self.apply_center_update()
        return self._centred(teacher_output, teacher_temp)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(self, teacher_output: Tensor, teacher_temp: float, n_iterations: int = 3) -> Tensor:
        """Sinkhorn's assignment of logits (N, K), balanced over all processes; float32. Right for logits of any size."""
        return balanced_targets(teacher_output, teacher_temp, n_iterations, self._module)

    def forward(
        self,
        student_output_list: Sequence[Tensor] | Tensor,
        teacher_out_softmaxed_centered_list: Sequence[Tensor] | Tensor,
    ) -> Tensor:
        """The sum over all pairs of crops of the mean over images.

        Args:
            student_output_list: logits (B, K) of each student's crop.
            teacher_out_softmaxed_centered_list: probabilities (B, K) of each teacher's crop.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``soft_cross_entropy``.
        """
        return listed_loss("DINOLoss", student_output_list, teacher_out_softmaxed_centered_list, self.student_temp)


class iBOTPatchLoss(PatchLoss):
    """The loss of patches. The teacher's logits become probabilities first, centred or balanced.

    Args:
        patch_out_dim: the number K of prototypes.
        student_temp: divides the student's logits.
        center_momentum: the share of the centre that is kept.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = iBOTPatchLoss(16)
        >>> masks = torch.rand(4, 9) < 0.4
        >>> student, teacher = torch.randn(2, int(masks.sum()), 16)
        >>> targets = criterion.sinkhorn_knopp_teacher(teacher, 0.04, masks.sum())
        >>> criterion.forward_masked(student, targets, masks).shape
        torch.Size([])
    """

    def __init__(self, patch_out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9):
        super().__init__("iBOTPatchLoss", (1, 1, patch_out_dim), student_temp, center_momentum)

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_patch_tokens: Tensor, teacher_temp: float) -> Tensor:
        """Moves the centre if that is due; the probabilities of logits (B, N, K)."""
        self.apply_center_update()
        return self._centred(teacher_patch_tokens, teacher_temp)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(
        self, teacher_output: Tensor, teacher_temp: float, n_masked_patches_tensor: Tensor | None, n_iterations: int = 3
    ) -> Tensor:
        """Sinkhorn's assignment of logits (M, K), balanced over all processes.

        The number of patches cancels, so ``n_masked_patches_tensor`` is neither read nor written; theirs adds it up over the
        processes, in place.
        """
        return balanced_targets(teacher_output, teacher_temp, n_iterations, self._module)


class KoLeoLoss(nn.Module):
    """The regulariser that spreads a batch, among the rows of this process; computed in float32 under autocast too.

    Examples:
        >>> round(KoLeoLoss()(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item(), 4)
        -0.6931
    """

    def forward(self, student_output: Tensor, eps: float = 1e-8) -> Tensor:
        """The mean loss.

        Args:
            student_output: (B, D) of any length.
            eps: the smallest norm that rows are divided by; added to entries of a difference and to distances.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``koleo``.
        """
        with rows_of_all():  # meant to be local
            return koleo(student_output, eps=eps)
