"""DINO and iBOT: a student's softmax is drawn to a teacher's, which is centred or balanced. On ``soft_cross_entropy``.

    q_t = softmax((t - c) / T_t)   centred,    or   softmax((t + a) / T_t)   balanced by the potentials a of ``sinkhorn``
    CE(q, s) = -sum_k q_k log softmax(s / T_s)_k

    dino = sum over crops s, t with s != t and images b of CE(q_{t,b}, s_b) / (B pairs)           (Caron et al. 2021, eq. 3)
    ibot = sum over patches i of w_i CE(q_i, s_i) / images,    w_i = 1 / masked patches of its image  (Zhou et al. 2022, eq. 2)
    c   <- m c + (1 - m) mean of the teacher's rows                                               (Caron et al. 2021, eq. 4)

The teacher is a constant. Nothing of the logits' size is made besides the student's gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastssl.checks import (
    accumulator_dtype,
    as_python,
    check_dense,
    check_flag,
    check_float_dtype,
    check_number,
    check_same_device,
    check_share,
    check_whole,
    is_whole,
    readable,
    type_name,
)
from fastssl.distributed.class_sums import sum_of_all
from fastssl.distributed.ranks import Joined, Ranks, join
from fastssl.ops._lists import check_stored, check_writable
from fastssl.ops.soft_cross_entropy import cross_entropy_of

from .parts.arguments import enter

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_crops(op: str, name: str, crops: Tensor) -> None:
    """Logits (S, B, K) with at least one crop, image and prototype."""
    if isinstance(crops, list | tuple):
        raise TypeError(f"{op}: {name} must be a tensor (crops, B, K), got {type_name(crops)}; torch.stack joins crops (B, K)")
    check_dense(op, name, crops, "a tensor (crops, B, K)")
    check_float_dtype(op, name, crops)
    if crops.dim() != 3 or 0 in crops.shape:
        hint = "; rows crop after crop become that by .unflatten(0, (crops, B))" if crops.dim() == 2 else ""
        raise ValueError(f"{op}: {name} must be (crops, B, K) with at least one of each, got shape {tuple(crops.shape)}{hint}")


def crop_pairs(op: str, name: str, student: Tensor, teacher: Tensor, ignore_diagonal: bool) -> int:
    """The number of pairs of a student's and a teacher's crop; at least one."""
    pairs = student.shape[0] * teacher.shape[0] - (min(student.shape[0], teacher.shape[0]) if ignore_diagonal else 0)
    if pairs == 0:
        raise ValueError(f"{op}: {name} must have at least two crops, since a crop is not compared with itself, got 1")
    return pairs


def mean_of_crops(op: str, student: Tensor, teacher: Tensor, pairs: int, joined: Joined | None, **how) -> Tensor:
    """The mean cross-entropy of crops (S, B, K) and (T, B, K); in several processes this process's share of the mean over all."""
    if joined is None:
        return cross_entropy_of(op, student, teacher, **how)
    return joined.mean(cross_entropy_of(op, student, teacher, reduction="sum", **how), pairs)


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None = None,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor | None = 0.04,
    potential: Tensor | None = None,
    ignore_diagonal: bool = True,
    heads: list[int] | None = None,
    group: ProcessGroup | Ranks | None = None,
    in_place: bool = False,
) -> Tensor:
    """DINO's loss of all crops (Caron et al. 2021, eq. 3): the cross-entropy of each student's crop with each other teacher's crop.

    Args:
        student: (S, B, K) logits of S crops, those of the T global crops first, in the teacher's order; float32, bfloat16, float16
            or float64.
        teacher: (T, B, K) logits of the global crops. A constant: no gradient goes there.
        center: (K,), or with further dimensions of 1 before it: subtracted from the teacher's logits. ``update_center`` moves it.
        student_temperature: divides the student's logits; a number or a one-element tensor.
        teacher_temperature: divides the teacher's logits; None: the teacher's rows are given probabilities.
        potential: what ``sinkhorn`` gives for the teacher's logits, (K,) or (T, 1, K): balances the prototypes, in place of a
            centre.
        ignore_diagonal: leaves out the pairs of crop t with itself, as DINO does.
        heads: sizes of nested heads whose sum is K, each with a softmax of its own; their losses are added (Franca).
        group: a process group or ``fastssl.distributed.Ranks``: the mean is over the images of all its processes, uneven batches
            included. Each process gets its share; the mean of the shares, and of their gradients, is that of one process.
        in_place: writes the student's gradient over its logits, which nothing else may need then.

    Returns:
        The mean over the pairs of crops and the images, float32 (float64 for float64 input). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature; no pair of crops left.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> student, teacher = torch.randn(4, 8, 16, requires_grad=True), torch.randn(2, 8, 16)  # 2 global and 2 local crops
        >>> center = torch.zeros(16)
        >>> dino_loss(student, teacher, center).backward()
        >>> update_center(center, teacher)
    """
    op = "dino_loss"
    student, teacher = enter(op, student, teacher)
    for name, crops in (("student", student), ("teacher", teacher)):
        check_crops(op, name, crops)
    check_flag(op, "ignore_diagonal", ignore_diagonal)
    pairs = crop_pairs(op, "student", student, teacher, ignore_diagonal)
    how: dict[str, Any] = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature, "heads": heads}
    joined = _join(op, group, student.transpose(0, 1), ignore_diagonal=ignore_diagonal, **how)
    how |= {"center": center, "potential": potential, "ignore_diagonal": ignore_diagonal, "in_place": in_place}
    return mean_of_crops(op, student, teacher, pairs, joined, **how)


def _join(op: str, group: ProcessGroup | Ranks | None, rows: Tensor, **arguments) -> Joined | None:
    """The processes of ``group``. Without one nothing warns: no row is compared with those of another image."""
    return None if group is None else join(op, group, rows, grad=rows.requires_grad, **arguments)


def ibot_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None = None,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor | None = 0.04,
    potential: Tensor | None = None,
    weight: Tensor | None = None,
    images: int | None = None,
    heads: list[int] | None = None,
    group: ProcessGroup | Ranks | None = None,
    in_place: bool = False,
) -> Tensor:
    """iBOT's loss of patches (Zhou et al. 2022, eq. 2): the cross-entropy of each student's patch with the teacher's of its place.

    iBOT and DINOv2 give the masked patches alone, with the weight 1 / (masked patches of its image), and divide by the images of
    the batch, those without a masked patch included: ``weight=patch_weights(mask, rows=M)`` and ``images=B``. iBOT++ (TIPSv2)
    gives all patches: ``weight=patch_weights(mask, visible=1.0).flatten()``.

    Args:
        student: (M, K) logits of patches; float32, bfloat16, float16 or float64. M may be 0: the loss is 0.
        teacher: (M, K) the teacher's logits of the same patches. A constant: no gradient goes there.
        center, student_temperature, teacher_temperature, potential, heads, in_place: as in ``dino_loss``.
        weight: (M,) float, what each patch counts, finite and at least 0 (looked at on a CPU alone); all 1 unless given.
        images: what the weighted sum is divided by; unless given, by the sum of the weights.
        group: a process group or ``fastssl.distributed.Ranks``: patches and ``images`` are those of all its processes, as many in
            each as it has. Each process gets its share; the mean of the shares, and of their gradients, is that of one process.

    Returns:
        The loss, float32 (float64 for float64 input). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature, or ``images`` below 1.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> mask = torch.rand(4, 9) < 0.4  # 4 images of 9 patches
        >>> student, teacher = torch.randn(int(mask.sum()), 16, requires_grad=True), torch.randn(int(mask.sum()), 16)
        >>> ibot_loss(student, teacher, weight=patch_weights(mask, rows=len(student)), images=4).backward()
    """
    op = "ibot_loss"
    student, teacher, weight = enter(op, student, teacher, weight)
    _check_patches(op, student, teacher, weight, images)
    how: dict[str, Any] = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature, "heads": heads}
    joined = _join(op, group, student, weighted=weight is not None, of_images=images is not None, **how)
    how |= {"center": center, "potential": potential, "weight": weight, "in_place": in_place}
    wide = accumulator_dtype(student)
    if len(student):
        total = cross_entropy_of(op, student, teacher, reduction="sum", **how)
    else:
        total = student.to(wide).sum()
    if images is not None:
        count = student.new_zeros((), dtype=wide) + images
    elif weight is not None:
        count = weight.detach().to(wide).sum()
    else:
        count = student.new_zeros((), dtype=wide) + len(student)
    if joined is not None:
        total, count = joined.world * total, sum_of_all(joined, count)
    return total / count.clamp_min(torch.finfo(wide).tiny)


def _check_patches(op: str, student: Tensor, teacher: Tensor, weight, images) -> None:
    """Logits (M, K) of one shape, M possibly 0, and the number of images."""
    for name, rows in (("student", student), ("teacher", teacher)):
        check_dense(op, name, rows, "a tensor (M, K)")
        check_float_dtype(op, name, rows)
        if rows.dim() != 2 or rows.shape[1] == 0:
            raise ValueError(f"{op}: {name} must be 2-D (M, K) with at least one column, got shape {tuple(rows.shape)}")
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"{op}: student and teacher must have the same shape (M, K), got {shapes}")
    if weight is not None:
        check_dense(op, "weight", weight, "a tensor (M,)")
        check_float_dtype(op, "weight", weight)
        if weight.shape == student.shape[:1] and weight.numel() and readable(weight):
            low, high = (float(t) for t in weight.detach().aminmax())
            if not (low >= 0 and high < math.inf):
                got = high if low >= 0 else low
                raise ValueError(f"{op}: weight must hold numbers that are at least 0 and finite, got {got}")
    if images is not None:
        if not is_whole(images):
            raise TypeError(f"{op}: images must be a whole number, got {type(images).__name__}")
        if not 1 <= as_python(images) < 2**31:
            raise ValueError(f"{op}: images must be in [1, {2**31}), got {images}")


def patch_weights(mask: Tensor, visible: float = 0.0, *, rows: int | None = None) -> Tensor:
    """What each patch counts in ``ibot_loss``: 1 / (masked patches of its image), and visible / (visible ones) where not masked.

    Args:
        mask: (B, ...) bool, True where a patch is masked.
        visible: the weight of an image's visible patches together, against 1 for its masked ones: iBOT++ (TIPSv2) has 1.
        rows: the number M of patches that are given, where these are the masked ones alone, image after image. A device is not
            asked for their number: patches beyond the masked ones get a weight of 0.

    Returns:
        float32 of the mask's shape, or (M,) with ``rows``.

    Raises:
        TypeError, ValueError: naming the argument; with ``rows`` on a CPU also where so many are not masked.

    Examples:
        >>> mask = torch.tensor([[True, False, True], [False, True, False]])
        >>> patch_weights(mask).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
        >>> patch_weights(mask, rows=3).tolist()
        [0.5, 0.5, 1.0]
    """
    op = "patch_weights"
    check_dense(op, "mask", mask, "a bool tensor (B, ...)")
    if mask.dtype != torch.bool or mask.dim() < 2:
        raise TypeError(
            f"{op}: mask must be a bool tensor (B, ...) of at least two dimensions, got {mask.dtype} {tuple(mask.shape)}"
        )
    check_number(op, "visible", visible, 0.0, torch.finfo(torch.float32).max)
    flat = mask.flatten(1)
    counts = flat.sum(1)
    if rows is None:
        masked = flat / counts.clamp_min(1)[:, None]
        if visible:
            masked = masked + float(visible) * (~flat / (flat.shape[1] - counts).clamp_min(1)[:, None])
        return masked.to(torch.float32).view(mask.shape)
    rows = check_whole(op, "rows", rows, 0)
    if visible:
        raise ValueError(f"{op}: rows was given, which means masked patches alone, so visible must be 0, got {visible}")
    if readable(counts) and int(counts.sum()) != rows:
        raise ValueError(f"{op}: mask must have rows = {rows} masked patches, got {int(counts.sum())}")
    last = counts.cumsum(0)  # the patches up to the end of each image
    image = torch.searchsorted(last, torch.arange(rows, device=mask.device), right=True)
    inverse = torch.cat([1.0 / counts.clamp_min(1).float(), counts.new_zeros(1, dtype=torch.float32)])
    return inverse[image]


@torch.no_grad()
def update_center(center: Tensor, teacher: Tensor, momentum: float = 0.9, group: ProcessGroup | Ranks | None = None) -> None:
    """Moves the centre of a teacher's logits, in place (Caron et al. 2021, eq. 4): m c + (1 - m) mean over all rows.

    The sum is kept in float32 for 16-bit logits. DINO computes the loss with the old centre and calls this after it.

    Args:
        center: (K,), or with further dimensions of 1 before it; float, written in place.
        teacher: (..., K) logits, of any number of rows from 0 on; float.
        momentum: m, the share that is kept, in [0, 1].
        group: a process group or ``fastssl.distributed.Ranks``: the mean is over the rows of all its processes, whatever their
            numbers, and the centre stays equal in all of them. None: this process's rows alone.

    Raises:
        TypeError, ValueError: naming the argument; nothing is changed then.

    Examples:
        >>> center = torch.zeros(1, 2)
        >>> update_center(center, torch.tensor([[1.0, 2.0], [3.0, 6.0]]), momentum=0.5)
        >>> center.tolist()
        [[1.0, 2.0]]
    """
    op = "update_center"
    _check_center(op, center, teacher, momentum)
    move_center(center, *row_sums(op, teacher, group), momentum)


def _check_center(op: str, center: Tensor, teacher: Tensor, momentum: float) -> None:
    for name, value in (("center", center), ("teacher", teacher)):
        check_dense(op, name, value)
        check_float_dtype(op, name, value)
    if teacher.dim() < 1 or teacher.shape[-1] == 0:
        raise ValueError(f"{op}: teacher must be (..., K) with at least one column, got shape {tuple(teacher.shape)}")
    columns = teacher.shape[-1]
    if center.dim() < 1 or center.shape[-1] != columns or center.numel() != columns:
        wanted = f"({columns},), or with further dimensions of 1 before it"
        raise ValueError(f"{op}: center must have shape {wanted}, got {tuple(center.shape)}")
    check_same_device(op, "center", center, "teacher", teacher)
    check_writable(op, "center", center)
    check_stored(op, "center", center)
    check_share(op, "momentum", momentum, ", the share that is kept")


@torch.no_grad()
def row_sums(op: str, rows: Tensor, group: ProcessGroup | Ranks | None) -> tuple[Tensor, Tensor]:
    """The sum (K,) of rows (..., K) over all processes of ``group``, and their number (), in the accumulator's dtype."""
    wide, rows = accumulator_dtype(rows), rows.detach().flatten(0, -2) if rows.dim() > 1 else rows.detach()[None]
    joined = join(op, group, rows) if group is not None else None
    total = _column_sums(rows, wide)
    count = total.new_zeros(1) + len(rows)
    if joined is not None:
        both = sum_of_all(joined, torch.cat([total, count]))
        total, count = both[:-1], both[-1:]
    return total, count[0]


def _column_sums(rows: Tensor, wide: torch.dtype) -> Tensor:
    """(K,). On a CPU torch would copy 16-bit rows as a whole before it sums them in float32, so they go block by block."""
    if rows.dtype == wide or rows.device.type != "cpu":
        return rows.sum(0, dtype=wide)
    total = rows.new_zeros(rows.shape[1], dtype=wide)
    for block in rows.split(64):
        total += block.sum(0, dtype=wide)
    return total


@torch.no_grad()
def move_center(center: Tensor, total: Tensor, count: Tensor, momentum: float) -> None:
    """center <- momentum center + (1 - momentum) total / count in place; without rows it stays."""
    mean = (total / count.clamp_min(1)).view_as(center)
    moved = center.to(mean.dtype) * momentum + mean * (1 - momentum)
    center.copy_(torch.where(count > 0, moved, center.to(mean.dtype)))
