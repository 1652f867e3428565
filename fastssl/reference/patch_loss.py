"""MAE's loss over removed patches and its gradient in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops._patches import to_patches

from .gather_tokens import gather_tokens_fwd


class LossCall(NamedTuple):
    """The arguments that the three ops have in common, in the order of their schemas."""

    images: Tensor  # (N, C, H, W)
    pred: Tensor  # (N, R, P)
    mask: Tensor | None  # (N, L) float32, or None:
    ids: Tensor | None  # (N, R) int64
    height: int
    width: int
    channels_last: bool
    normalize: bool
    eps: float
    absolute: bool


def _prepared(call: LossCall) -> tuple[Tensor, Tensor]:
    """The target of each row of pred (N, R, P) and its weight (N, R), in float32 or wider."""
    wide = accumulator_dtype(call.pred)
    target = to_patches(call.images, call.height, call.width, call.channels_last)
    target = (target if call.ids is None else gather_tokens_fwd(target, call.ids)).to(wide)
    return target, torch.ones_like(call.pred[:, :, 0], dtype=wide) if call.mask is None else call.mask.to(wide)


def patch_loss_fwd(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Of a ``LossCall``: loss (), sum of weights (), and, where normalised, stats (N, R, 2)."""
    call = LossCall(*arguments)
    target, weight = _prepared(call)
    stats = target.new_empty(0)
    if call.normalize:
        mean, scale = target.mean(2), (target.var(2) + call.eps).rsqrt()
        target = (target - mean[:, :, None]) * scale[:, :, None]
        stats = torch.stack([mean, scale], 2)
    error = call.pred.to(target.dtype) - target
    each = (error.abs() if call.absolute else error.square()).mean(2)
    total = weight.sum()
    loss = torch.where(weight != 0, each * weight, 0.0).sum() / total
    return torch.where(total > 0, loss, 0.0), total, stats


def patch_loss_one_pass(*arguments) -> tuple[Tensor, Tensor]:
    """Of a ``LossCall``: loss () and its gradient in pred (N, R, P), for an upstream gradient of 1."""
    loss, total, stats = patch_loss_fwd(*arguments)
    return loss, patch_loss_bwd(torch.ones_like(loss), total, stats, *arguments)


def patch_loss_bwd(grad: Tensor, total: Tensor, stats: Tensor, *arguments) -> Tensor:
    """Gradient grad () of the loss of a ``LossCall`` -> dpred (N, R, P) in the dtype of pred, 0 beside the removed patches."""
    call = LossCall(*arguments)
    target, weight = _prepared(call)
    if call.normalize:
        target = (target - stats[:, :, :1]) * stats[:, :, 1:]
    error = call.pred.to(target.dtype) - target
    slope = error.sign() if call.absolute else 2 * error
    size = torch.where(weight != 0, grad * weight / (total * call.pred.shape[2]), 0.0)[:, :, None]
    return torch.where(size == 0, 0.0, slope * size).to(call.pred.dtype)
