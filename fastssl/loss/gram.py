"""Losses of Gram matrices: Gram anchoring (DINOv3) and centred kernel alignment (PaKA), for patches of an image or rows of a batch.

    gram_loss   mean over a, b of (s_ab - t_ab)^2,     s, t: inner products of the student's and of the teacher's rows
    cka         1 - <H K_s H, H K_t H> / (|H K_s H| |H K_t H|),   K = Z Z^T,  H takes the mean away

The teacher is a constant. ``ops/gram.py`` makes loss and gradient in one sweep.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import (
    accumulator_dtype,
    check_choice,
    check_dense,
    check_flag,
    check_float_dtype,
    check_like,
    check_number,
    check_same_device,
    check_scalar,
    check_whole,
)
from fastssl.ops import gram as ops

from .parts.arguments import enter
from .redundancy import FORMS


def _sides(op: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (B, N, D) in the accumulator dtype, after their checks; of one image where they have two dimensions."""
    for name, value in (("student", student), ("teacher", teacher)):
        check_dense(op, name, value, "a tensor (B, N, D) or (N, D)")
        check_float_dtype(op, name, value)
        if value.dim() not in (2, 3) or 0 in value.shape:
            raise ValueError(f"{op}: {name} must have shape (B, N, D) or (N, D), no side of it 0, got {tuple(value.shape)}")
    if student.shape[:-1] != teacher.shape[:-1]:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"{op}: student and teacher must have the same shape but for the width, got {shapes}")
    check_like(op, "teacher", teacher, "student", student)
    wide = accumulator_dtype(student)
    student, teacher = student.to(wide), teacher.detach().to(wide)
    return (student, teacher) if student.dim() == 3 else (student[None], teacher[None])


def gram_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    normalize: bool = True,
    image_level: bool = True,
    remove_negative: bool = False,
    remove_only_teacher_negative: bool = False,
) -> Tensor:
    """Gram anchoring (Simeoni et al. 2025, DINOv3, section 4.2): the mean squared difference of the Gram matrices of two sides.

    Args:
        student: (B, N, D) patches of B images, or (N, D) rows of one; float32, bfloat16, float16 or float64. Sums are float32.
        teacher: (B, N, E) or (N, E), a constant, same dtype and device; the widths may differ.
        normalize: bring rows to unit length, so that the matrices hold cosines.
        image_level: a matrix (N, N) for each image; False: one of all B N rows, of which only tiles are made at a time.
        remove_negative: negative entries of both matrices count as 0.
        remove_only_teacher_negative: negative entries of the teacher count as 0, and so do those of the student that are negative
            where the teacher's are.

    Returns:
        The loss, a float32 scalar (float64 for float64 input). Memory beyond the gradient: some images' matrices at a time.
        Differentiable once, in ``student``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, or both ways to remove negative entries.

    Examples:
        >>> student, teacher = torch.eye(2)[None], torch.ones(1, 2, 2)
        >>> round(gram_loss(student, teacher).item(), 4)  # cosines 0 and 1 beside the diagonal
        0.5
    """
    op = "gram_loss"
    student, teacher = enter(op, student, teacher)
    student, teacher = _sides(op, student, teacher)
    flags = {"normalize": normalize, "image_level": image_level}
    flags |= {"remove_negative": remove_negative, "remove_only_teacher_negative": remove_only_teacher_negative}
    for name, value in flags.items():
        check_flag(op, name, value)
    if remove_negative and remove_only_teacher_negative:
        raise ValueError(f"{op}: remove_negative and remove_only_teacher_negative must not both be True")
    if not image_level:
        student, teacher = student.flatten(0, 1)[None], teacher.flatten(0, 1)[None]
    negatives = ops.CLAMP if remove_negative else ops.CLAMP_SHARED if remove_only_teacher_negative else ops.KEEP
    total = ops.gram_difference(op, student, teacher, bool(normalize), negatives)
    return total / (student.shape[0] * student.shape[1]) / student.shape[1]


def cka(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    form: str = "auto",
    eps: float = 1e-6,
) -> Tensor:
    """Linear centred kernel alignment as a loss, 1 - CKA (Kornblith et al. 2019, eq. 3): the patch kernel alignment of PaKA.

    The loss does not change where the rows of a side are rotated, scaled or moved together.

    Args:
        student: (B, N, D) patches of B images, or (N, D) rows of one; float32, bfloat16, float16 or float64. Sums are float32.
        teacher: (B, N, E) or (N, E), a constant, same dtype and device; the widths may differ.
        mask: (B, N) or (N,) bool, True for rows that are left out. Images with fewer than two rows left do not count.
        form: "gram" for N x N matrices, "covariance" for those of the widths, "auto" for the one that takes fewer FLOPs.
        eps: the least that <K, K> of a side is taken for.

    Returns:
        The mean over the images, a float32 scalar (float64 for float64 input), in [0, 1] up to rounding; 0 where no image counts.
        Differentiable once, in ``student``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, form or eps.

    Examples:
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
        >>> turned = 2.0 * teacher.flip(1) + 1.0  # scaled, mirrored and moved
        >>> round(abs(cka(turned, teacher).item()), 4)
        0.0
    """
    op = "cka"
    student, teacher = enter(op, student, teacher)
    given = student
    student, teacher = _sides(op, student, teacher)
    check_choice(op, "form", form, FORMS)
    check_scalar(op, "eps", eps, student)
    check_number(op, "eps", eps, 0.0)
    images, rows, width = student.shape
    valid = None
    if mask is not None:
        check_dense(op, "mask", mask, "a bool tensor")
        if mask.dtype != torch.bool:
            raise TypeError(f"{op}: mask must be bool, got {mask.dtype}")
        if mask.shape != given.shape[:-1]:
            raise ValueError(f"{op}: mask must have shape {tuple(given.shape[:-1])}, got {tuple(mask.shape)}")
        check_same_device(op, "mask", mask, "student", given)
        valid = (~mask).to(student.dtype).view(images, rows, 1)
    by_gram = form == "gram" or (form == "auto" and ops.gram_is_cheaper_for_cka(rows, width, teacher.shape[2]))
    losses = ops.cka(op, student, teacher, valid, float(eps), by_gram)
    if valid is None:
        return losses.mean() if rows > 1 else 0.0 * losses.sum()
    counted = valid.sum((1, 2)) >= 2
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)


class PatchKernelAlignmentLoss(nn.Module):
    """``cka`` with the arguments of lightly's: ``PatchKernelAlignmentLoss(max_tokens=None)(student_features, teacher_features)``.

    Args:
        max_tokens: of more patches than that, so many are drawn for each image, those that are not masked first; at least 2.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> criterion = PatchKernelAlignmentLoss(max_tokens=16)
        >>> student, teacher = torch.randn(2, 49, 8, requires_grad=True), torch.randn(2, 49, 8)
        >>> criterion(student, teacher).backward()
        >>> int((student.grad != 0).any(2).sum())  # of each of 2 images
        32
    """

    def __init__(self, max_tokens: int | None = None):
        super().__init__()
        self.max_tokens = None if max_tokens is None else check_whole("PatchKernelAlignmentLoss", "max_tokens", max_tokens, 2)

    def forward(self, student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean loss of the images.

        Args:
            student_features: (B, N, D) patches.
            teacher_features: (B, N, E) patches, a constant.
            mask: (B, N) bool, True for patches that are left out.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``cka``.
        """
        several = isinstance(student_features, Tensor) and student_features.dim() == 3
        if self.max_tokens is None or not several or student_features.shape[1] <= self.max_tokens:
            return cka(student_features, teacher_features, mask=mask)
        _sides("cka", student_features, teacher_features)
        score = torch.rand(student_features.shape[:2], device=student_features.device)
        if mask is not None:
            score = score.masked_fill(mask, torch.inf)
        drawn = score.topk(self.max_tokens, dim=1, largest=False).indices
        student, teacher = (t.gather(1, drawn[..., None].expand(-1, -1, t.shape[2])) for t in (student_features, teacher_features))
        return cka(student, teacher, mask=None if mask is None else mask.gather(1, drawn))
