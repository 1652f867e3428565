"""For the training loop of facebookresearch/swav: its Sinkhorn function, and the loss of all its crops in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from fastssl.checks import check_float_dtype, check_whole
from fastssl.distributed.ranks import Ranks
from fastssl.loss.dino_modules import check_temperatures
from fastssl.loss.sinkhorn import sinkhorn
from fastssl.loss.swav import swav_loss as _of_crops

from ._soft_targets import balanced_targets, targets

__all__ = ["distributed_sinkhorn", "sinkhorn_codes", "swav_loss"]


def _check_matrix(op: str, name: str, rows: Tensor, shape: str) -> None:
    if not isinstance(rows, Tensor) or rows.dim() != 2:
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"{op}: {name} must be a tensor {shape}, got {got}")
    check_float_dtype(op, name, rows)


@torch.no_grad()
def distributed_sinkhorn(Q: Tensor, nmb_iters: int) -> Tensor:
    """Codes (B, K) of ``Q = exp(out / epsilon).t()`` (K, B), balanced over all processes; works alone too.

    The script had this function until April 2021; ``distributed_sinkhorn(out)``, which it has now, is ``sinkhorn_codes`` here.
    ``Q`` is not changed. Entries that are 0 or infinite count as the smallest and the largest number of their dtype, where the
    original gives NaN. Logits that overflow in the exponential are better left to ``swav_loss``, which takes them as they are.

    Args:
        Q: (K, B) float, at least 0.
        nmb_iters: passes, from 1 to 65,536.

    Returns:
        Codes (B, K), float32 (float64 for float64 input); each row adds up to 1.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> codes = distributed_sinkhorn(torch.exp(torch.randn(8, 30) / 0.05).t(), 3)
        >>> codes.shape, bool((codes.sum(1) - 1).abs().max() < 1e-5)
        (torch.Size([8, 30]), True)
    """
    op = "distributed_sinkhorn"
    _check_matrix(op, "Q", Q, "(K, B)")
    limits = torch.finfo(Q.dtype)
    logits = Q.t().clamp(limits.tiny, limits.max)
    logits = logits.to(torch.promote_types(Q.dtype, torch.float32)).log_().contiguous()
    return targets(logits, sinkhorn(logits, 1.0, nmb_iters, group=Ranks(even=True)), 1.0)


def sinkhorn_codes(out: Tensor, epsilon: float, sinkhorn_iterations: int) -> Tensor:
    """Codes (B, K) of logits, balanced over all processes: ``distributed_sinkhorn(out)`` of the script as it is now.

    There ``epsilon`` and ``sinkhorn_iterations`` are read from the global ``args``, as ``fastssl.patch("swav", main_swav)`` does.
    Logits may have any size, and ``out`` is not changed.

    Args:
        out: (B, K) float, products of embeddings with prototypes; of a queue too. A constant.
        epsilon: the temperature, above 0: ``args.epsilon``.
        sinkhorn_iterations: passes, from 1 to 65,536: ``args.sinkhorn_iterations``.

    Returns:
        Codes (B, K), float32 (float64 for float64 input); each row adds up to 1.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> codes = sinkhorn_codes(torch.randn(8, 30), 0.05, 3)
        >>> codes.shape, bool((codes.sum(1) - 1).abs().max() < 1e-5)
        (torch.Size([8, 30]), True)
    """
    op = "sinkhorn_codes"
    _check_matrix(op, "out", out, "(B, K)")
    check_temperatures(op, epsilon=epsilon)
    passes = check_whole(op, "sinkhorn_iterations", sinkhorn_iterations, 1, 65536)
    return balanced_targets(out, epsilon, passes, None)


def _of_script(script: ModuleType) -> Callable[[Tensor], Tensor]:
    """``distributed_sinkhorn(out)`` of a module, whose global ``args`` is read at each call."""

    def distributed_sinkhorn(out: Tensor) -> Tensor:
        return sinkhorn_codes(out, script.args.epsilon, script.args.sinkhorn_iterations)

    return distributed_sinkhorn


def swav_loss(
    output: Tensor,
    nmb_crops: Sequence[int],
    crops_for_assign: Sequence[int] = (0, 1),
    queue_output: Sequence[Tensor] | Tensor | None = None,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    sinkhorn_iterations: int = 3,
) -> Tensor:
    """What the loop of main_swav.py computes between ``model(inputs)`` and ``loss.backward()``, balanced over all processes.

    The queue itself stays the loop's: ``queue_output`` are its products with the prototypes, from before this batch is pushed.

    Args:
        output: (sum(nmb_crops) B, K) the model's second output, crop after crop.
        nmb_crops: the number of crops of each size, as ``args.nmb_crops``.
        crops_for_assign: the crops that get codes.
        queue_output: (Q, K) for each of them: ``queue[i] @ prototypes.weight.t()``.
        temperature, epsilon, sinkhorn_iterations: of predictions, of codes, and the passes of Sinkhorn's algorithm.

    Returns:
        The mean loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> output = torch.randn((2 + 6) * 4, 30, requires_grad=True)  # 2 crops of 224 and 6 of 96 pixels of 4 images
        >>> swav_loss(output, nmb_crops=[2, 6]).backward()
    """
    op = "swav_loss"
    crops = sum(check_whole(op, "nmb_crops", count, 0) for count in nmb_crops)
    if not isinstance(output, Tensor) or output.dim() != 2 or crops == 0 or len(output) % crops:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{op}: output must be a tensor (crops B, K) of {crops} crops, got {got}")
    chosen = [check_whole(op, "crops_for_assign", crop, 0, crops) for crop in crops_for_assign]
    if len({*chosen}) != len(chosen) or not chosen:
        raise ValueError(f"{op}: crops_for_assign must be different crops, at least one, got {chosen}")
    logits = output.unflatten(0, (crops, -1))
    if chosen != list(range(len(chosen))):
        logits = logits[chosen + [crop for crop in range(crops) if crop not in chosen]]
    return _of_crops(
        logits,
        None if queue_output is None else [rows.detach().to(logits.dtype) for rows in queue_output],
        assigned=len(chosen),
        student_temperature=temperature,
        teacher_temperature=epsilon,
        iterations=sinkhorn_iterations,
        group=Ranks(),
    )
