"""SwAV's swapped prediction (Caron et al. 2020, eq. 2): the codes of one crop are predicted from the other crops of its image.

    q_i = Sinkhorn codes of crop i, balanced over [its logits; the queue's logits]
    loss = 1/H sum over global crops i  1/(S-1) sum over crops v != i  mean over images of CE(q_i, softmax(z_v / T_s))

The codes are softmax((z_i + a_i) / T_t) with the potentials a_i of ``sinkhorn``, so neither codes nor plan are stored, the queue
is not copied, and only the crop's own rows are read again. All pairs of crops are one call of ``soft_cross_entropy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastssl.checks import check_constant, check_dense, check_like, check_whole, savable
from fastssl.distributed.ranks import Ranks, join
from fastssl.ops._patches import dense_rows
from fastssl.ops._register import refuse_transforms
from fastssl.ops._targets import check_temperature, on_device

from .dino import check_crops, crop_pairs, mean_of_crops
from .parts.arguments import enter
from .sinkhorn import MOST_ITERATIONS, potentials

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined


def swav_loss(
    logits: Tensor,
    queue: Sequence[Tensor] | Tensor | None = None,
    *,
    assigned: int = 2,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.05,
    iterations: int = 3,
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """SwAV's loss of all crops (Caron et al. 2020, eq. 2), with the codes of the first ``assigned`` crops.

    Args:
        logits: (S, B, K) products of the crops' embeddings with K prototypes, the global crops first; float32, bfloat16, float16
            or float64. Codes are constants; the gradient is that of the predictions.
        queue: (Q, K) products of earlier embeddings with the same prototypes for each of these crops, a list or one tensor
            (assigned, Q, K), which help to balance its codes; same dtype. Constants.
        assigned: how many crops get codes: the global ones.
        student_temperature: divides the logits of a prediction; a number or a one-element tensor.
        teacher_temperature: divides the logits of a code, epsilon of the paper; the same.
        iterations: passes of Sinkhorn's algorithm, from 1 to 65,536.
        group: a process group or ``fastssl.distributed.Ranks``: codes are balanced, and the mean is taken, over the images of all
            its processes, uneven batches included. Each process gets its share; the mean of the shares, and of their gradients,
            is that of one process. None: the images of this process alone are balanced.

    Returns:
        The mean over pairs of crops and images, float32 (float64 for float64 input). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature or number.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> logits = torch.randn(4, 8, 30, requires_grad=True)  # 2 global and 2 local crops of 8 images, 30 prototypes
        >>> swav_loss(logits).backward()
        >>> loss = swav_loss(logits, torch.randn(2, 64, 30))  # with a queue
    """
    op = "swav_loss"
    (logits,) = enter(op, logits)
    refuse_transforms(op, student_temperature, teacher_temperature)
    check_crops(op, "logits", logits)
    assigned = check_whole(op, "assigned", assigned, 1, logits.shape[0] + 1)
    teacher = logits.detach()[:assigned]
    earlier = None if queue is None else _queues(op, queue, teacher)
    pairs = crop_pairs(op, "logits", logits, teacher, True)
    temperatures: dict[str, Any] = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
    for name, value in temperatures.items():
        check_temperature(op, name, value, logits)
    iterations = check_whole(op, "iterations", iterations, 1, MOST_ITERATIONS + 1)
    joined = None
    if group is not None:
        how = temperatures | {"iterations": iterations, "assigned": assigned, "queue": queue is not None}
        joined = join(op, group, logits.transpose(0, 1), grad=logits.requires_grad, **how)
    potential = _balanced(teacher, earlier, on_device((teacher_temperature,), logits), iterations, joined)
    return mean_of_crops(op, logits, teacher, pairs, joined, potential=potential, ignore_diagonal=True, **temperatures)


def _queues(op: str, queue: Sequence[Tensor] | Tensor, teacher: Tensor) -> list[Tensor]:
    """Checked rows (Q, K) for each crop of ``teacher`` (assigned, B, K)."""
    assigned, _, columns = teacher.shape
    words = "a tensor (assigned, Q, K) or a list of tensors (Q, K)"
    if not isinstance(queue, (Tensor, list, tuple)):
        raise TypeError(f"{op}: queue must be {words}, got {type(queue).__name__}")
    for rows in (queue,) if isinstance(queue, Tensor) else queue:
        check_dense(op, "queue", rows, words)
    if isinstance(queue, Tensor):
        shapes = [tuple(queue.shape[1:])] * (queue.shape[0] if queue.dim() == 3 else 0)
    else:
        shapes = [tuple(rows.shape) for rows in queue]
    if len(shapes) != assigned or any(len(shape) != 2 or shape[1] != columns or shape[0] == 0 for shape in shapes):
        got = tuple(queue.shape) if isinstance(queue, Tensor) else shapes
        wanted = f"shape ({assigned}, Q, {columns}), or be a list of {assigned} tensors (Q, {columns})"
        raise ValueError(f"{op}: queue must have {wanted}, got {got}")
    refuse_transforms(op, *([queue] if isinstance(queue, Tensor) else queue))
    rows = [savable(rows) for rows in (queue.unbind() if isinstance(queue, Tensor) else queue)]
    for each in rows:
        check_like(op, "queue", each, "logits", teacher)
        check_constant(op, "queue", each)
    return [each.detach() for each in rows]


def _balanced(teacher: Tensor, earlier: list[Tensor] | None, scale: Tensor, iterations: int, joined: Joined | None) -> Tensor:
    """The potentials (assigned, 1, K) of crops (assigned, B, K), each balanced together with its earlier rows (Q, K)."""
    assigned, batch, columns = teacher.shape
    if earlier is None:
        rows = dense_rows(teacher.flatten(0, 1))
        return potentials([(rows, batch)], assigned, scale, iterations, [columns], joined)[:, None]
    found = [
        potentials([(dense_rows(crop), 1), (dense_rows(rows), 1)], 1, scale, iterations, [columns], joined)
        for crop, rows in zip(teacher, earlier, strict=True)
    ]
    return torch.stack(found)
