"""The loss of predicted latents of I-JEPA, V-JEPA and data2vec, on the fused ``masked_latent``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fastssl.checks import (
    FLOATS,
    LARGEST,
    NUMBERS,
    accumulator_dtype,
    check_constant,
    check_dense,
    check_flag,
    check_number,
    readable,
    savable,
    type_name,
)
from fastssl.ops._patches import check_device, check_floats, check_ids, dense_rows
from fastssl.ops._register import refuse_transforms
from fastssl.ops.masked_latent import masked_latent

from .parts.reductions import check_reduction

_OP = "masked_latent_loss"
LOSSES = ("l1", "l2", "smooth_l1")


def masked_latent_loss(
    pred: Tensor | Sequence[Tensor],
    target: Tensor,
    ids: Tensor | Sequence[Tensor] | None = None,
    *,
    loss: str | float = "smooth_l1",
    beta: float = 1.0,
    normalize: bool = True,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """How far predicted latents of hidden tokens are from a teacher's, which are normalised and gathered on the way.

    The loss of I-JEPA (Assran et al. 2023, section 3), V-JEPA and V-JEPA 2 (Bardes et al. 2024, eq. 1) and data2vec (Baevski et
    al. 2022, eq. 1). Row (p, k) of ``pred`` is compared with token ``ids[p, k]`` of sample p mod N, brought to mean 0 and
    variance 1 over D, as ``F.layer_norm(target, (D,))`` does: the target is neither normalised as a whole nor gathered.

    Args:
        pred: (P, K, D) float32, bfloat16, float16 or float64, P a multiple of N: with several blocks of an image, block after
            block, each of the whole batch, as I-JEPA's predictor returns them. Or a sequence of such tensors, one for each of
            ``ids``, where blocks differ in K: the loss is the mean over them, as in V-JEPA 2.
        target: (N, L, D) a teacher's latents, float32, bfloat16 or float16 (float64 where ``pred`` is). They are a constant of the
            loss: asking for their gradient is refused. A slice such as ``h[:, 1:]`` is read in place.
        ids: (P, K) int64 in [0, L), the tokens that the rows belong to, in any order, any number of times. A sequence of them, each
            (N, K), with one tensor ``pred``: the blocks one after the other, each as often as P / (N blocks) says (I-JEPA's
            contexts). None: K = L, all tokens. On a GPU an id out of range counts as weight 0.
        loss: "l1", "l2" (the square), "smooth_l1", or a number q of at least 1: ``|e|^q / q``, V-JEPA's.
        beta: where "smooth_l1" turns from ``e^2 / (2 beta)`` to ``|e| - beta / 2``; at least 0. I-JEPA's is 1, data2vec's 2.
        normalize: whether the target is normalised.
        eps: what is added to the variance.
        weight: (P, K) bool or float, of each row; finite and at least 0, which is looked at on a CPU alone. A constant. Rows of
            weight 0 are not read.
        reduction: "mean" over the rows (with ``weight``, the weighted mean; 0 where all weights are 0), "sum" over the rows, or
            "none" for the losses (P, K). The loss of a row is its weight times the mean over D.

    Returns:
        The loss, float32 (float64 where ``pred`` is), a scalar unless ``reduction="none"``. It can be differentiated once, in
        ``pred``.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        NotImplementedError: ``target`` or ``weight`` requires a gradient, or the call is inside a ``torch.func`` transform or
            forward-mode differentiation.

    Examples:
        >>> h = torch.randn(2, 9, 16)  # N = 2, L = 9, D = 16
        >>> ids = torch.tensor([[7, 8], [0, 3]])
        >>> pred = torch.nn.functional.layer_norm(h, (16,))[torch.arange(2)[:, None], ids] + 0.5
        >>> round(masked_latent_loss(pred, h, ids, loss="l1").item(), 4)
        0.5
    """
    refuse_transforms(_OP, *_several(pred), target, weight)
    check_floats(_OP, "target", target, "N, L, D")
    check_constant(_OP, "target", target)
    check_flag(_OP, "normalize", normalize)
    check_number(_OP, "eps", eps, 0.0)
    check_reduction(_OP, reduction)
    how = (*_kind(loss, beta), bool(normalize), float(eps))
    if isinstance(pred, Tensor):
        rows, places = _checked(pred, target, ids)
        return _of_rows(rows, target, places, weight, how, reduction)
    blocks = _blocks(pred, ids, weight, reduction)
    prepared = [_checked(part, target, of_part) for part, of_part in blocks]
    losses = [_of_rows(rows, target, places, None, how, reduction) for rows, places in prepared]
    total = torch.stack(losses)
    return total.mean() if reduction == "mean" else total.sum()


def _several(pred) -> tuple:
    return tuple(pred) if isinstance(pred, (tuple, list)) else (pred,)


def _kind(loss: str | float, beta: float) -> tuple[str, float]:
    """The name of d(e) for the op, and the number in it."""
    check_number(_OP, "beta", beta, 0.0)
    if isinstance(loss, NUMBERS) and not isinstance(loss, bool):
        check_number(_OP, "loss", loss, 1.0)
        return ("l1", 1.0) if loss == 1 else ("power", float(loss))
    if not isinstance(loss, str):
        raise TypeError(f"{_OP}: loss must be one of {', '.join(map(repr, LOSSES))} or a number, got {type_name(loss)}")
    if loss not in LOSSES:
        raise ValueError(f"{_OP}: loss must be one of {', '.join(map(repr, LOSSES))} or a number, got {loss!r}")
    if loss == "smooth_l1":
        return ("l1", 1.0) if beta == 0 else ("smooth_l1", float(beta))
    return loss, 1.0


def _blocks(pred, ids, weight, reduction: str) -> list[tuple[Tensor, Tensor]]:
    """The pairs of pred and ids of a call with sequences of both."""
    if not isinstance(pred, (tuple, list)) or not pred:
        raise TypeError(f"{_OP}: pred must be a tensor (P, K, D) or a sequence of them, got {type_name(pred)}")
    if not isinstance(ids, (tuple, list)) or len(ids) != len(pred):
        got = f"{len(ids)} of them" if isinstance(ids, (tuple, list)) else type_name(ids)
        raise ValueError(f"{_OP}: ids must be a sequence of {len(pred)} tensors, one for each of pred, got {got}")
    if weight is not None or reduction == "none":
        name = "weight" if weight is not None else "reduction"
        raise ValueError(f"{_OP}: {name} must be {'None' if weight is not None else 'mean or sum'} where pred is a sequence")
    return list(zip(pred, ids, strict=True))


def _checked(pred: Tensor, target: Tensor, ids) -> tuple[Tensor, Tensor | None]:
    """pred with dense rows, and ids (P, K), after their checks."""
    check_floats(_OP, "pred", pred, "P, K, D")
    check_device(_OP, "pred", pred, "target", target)
    if (pred.dtype == torch.float64) != (target.dtype == torch.float64):
        raise TypeError(f"{_OP}: pred and target must both be float64 or neither, got {pred.dtype} and {target.dtype}")
    samples, length, width = target.shape
    if pred.shape[2] != width or pred.shape[0] % samples:
        wanted = f"({samples} or a multiple of it, K, {width})"
        raise ValueError(f"{_OP}: pred must have shape {wanted}, got {tuple(pred.shape)} (follows from target)")
    if isinstance(ids, (tuple, list)):
        ids = _joined(ids, pred, target)
    if ids is not None:
        check_ids(_OP, "ids", ids, pred.shape[0], "P, K", length, "pred", pred, "target")
        ids = ids.contiguous()
    tokens = length if ids is None else ids.shape[1]
    if pred.shape[1] != tokens:
        by = "target, since no ids were given" if ids is None else "ids"
        raise ValueError(
            f"{_OP}: pred must have shape {(pred.shape[0], tokens, width)}, got {tuple(pred.shape)} (follows from {by})"
        )
    return pred, ids


def _joined(ids: Sequence[Tensor], pred: Tensor, target: Tensor) -> Tensor:
    """Blocks of ids (N, K) one after the other, each as often as pred has rows for it."""
    samples = target.shape[0]
    if not ids:
        raise ValueError(f"{_OP}: ids must be a tensor or at least one, got an empty sequence")
    for k, block in enumerate(ids):
        check_ids(_OP, f"ids[{k}]", block, samples, "N, K", target.shape[1], "target", target)
        if block.shape[1] != ids[0].shape[1]:
            raise ValueError(
                f"{_OP}: ids of one pred must all have {ids[0].shape[1]} columns, got {block.shape[1]}; pass a sequence of pred"
            )
    times, rest = divmod(pred.shape[0], samples * len(ids))
    if rest:
        wanted = f"a multiple of {samples * len(ids)} rows, {len(ids)} blocks of {samples}"
        raise ValueError(f"{_OP}: pred must have {wanted}, got {pred.shape[0]} (follows from ids and target)")
    return torch.cat([block for block in ids for _ in range(times)])


def _of_rows(pred: Tensor, target: Tensor, ids: Tensor | None, weight, how: tuple, reduction: str) -> Tensor:
    if weight is not None:
        weight = _check_weight(weight, pred)
        if reduction == "mean":
            top = weight.amax()  # their sum may be beyond the largest number
            share = weight / torch.where(top > 0, top, 1.0)
            weight = torch.where(top > 0, share / share.sum(), 0.0)
            reduction = "sum"
    given = (savable(t) for t in (dense_rows(pred), dense_rows(target), ids, weight))
    return masked_latent(*given, how=how, reduction=reduction)


def _check_weight(weight, pred: Tensor) -> Tensor:
    """The weights as contiguous numbers of the sums' dtype."""
    shape = pred.shape[:2]
    check_dense(_OP, "weight", weight, "a tensor {}", tuple(shape))
    if weight.dtype != torch.bool and weight.dtype not in FLOATS:
        raise TypeError(f"{_OP}: weight must be bool or float, got {weight.dtype}")
    if weight.shape != shape:
        raise ValueError(f"{_OP}: weight must have shape {tuple(shape)}, got {tuple(weight.shape)} (follows from pred)")
    check_device(_OP, "weight", weight, "pred", pred)
    check_constant(_OP, "weight", weight)
    weight = weight.detach().to(accumulator_dtype(pred)).contiguous()
    if readable(weight):
        low, high = (cast(float, t.item()) for t in weight.aminmax())
        if not (low >= 0 and high <= LARGEST):
            got = low if not low >= 0 else high
            raise ValueError(f"{_OP}: weight must hold numbers that are at least 0 and finite, got {got}")
    return weight
