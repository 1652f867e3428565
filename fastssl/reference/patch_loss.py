"""MAE's loss over removed patches and its gradient in plain PyTorch."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops._patches import to_patches

from .gather_tokens import gather_tokens_fwd


def _prepared(images, pred, mask, ids, height, width, channels_last) -> tuple[Tensor, Tensor]:
    """target of each row of pred and its weight (N, R), in float32 or wider."""
    wide = accumulator_dtype(pred)
    target = to_patches(images, height, width, channels_last)
    target = (target if ids is None else gather_tokens_fwd(target, ids)).to(wide)
    return target, torch.ones_like(pred[:, :, 0], dtype=wide) if mask is None else mask.to(wide)


def patch_loss_fwd(
    images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute
) -> tuple[Tensor, Tensor, Tensor]:
    """images (N, C, H, W), pred (N, R, P), mask (N, L) float32 or ids (N, R) -> loss (), sum of weights (), stats (N, R, 2)."""
    target, weight = _prepared(images, pred, mask, ids, height, width, channels_last)
    stats = target.new_empty(0)
    if normalize:
        mean, scale = target.mean(2), (target.var(2) + eps).rsqrt()
        target = (target - mean[:, :, None]) * scale[:, :, None]
        stats = torch.stack([mean, scale], 2)
    error = pred.to(target.dtype) - target
    each = (error.abs() if absolute else error.square()).mean(2)
    total = weight.sum()
    loss = torch.where(weight != 0, each * weight, 0.0).sum() / total
    return torch.where(total > 0, loss, 0.0), total, stats


def patch_loss_one_pass(images, pred, *how) -> tuple[Tensor, Tensor]:
    """loss () and its gradient in pred (N, R, P), for an upstream gradient of 1."""
    loss, total, stats = patch_loss_fwd(images, pred, *how)
    return loss, patch_loss_bwd(torch.ones_like(loss), total, stats, images, pred, *how)


def patch_loss_bwd(grad, total, stats, images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute) -> Tensor:
    """grad () of the loss -> dpred (N, R, P) in the dtype of pred, 0 beside the removed patches."""
    target, weight = _prepared(images, pred, mask, ids, height, width, channels_last)
    if normalize:
        target = (target - stats[:, :, :1]) * stats[:, :, 1:]
    error = pred.to(target.dtype) - target
    slope = error.sign() if absolute else 2 * error
    size = torch.where(weight != 0, grad * weight / (total * pred.shape[2]), 0.0)[:, :, None]
    return torch.where(size == 0, 0.0, slope * size).to(pred.dtype)
