"""The loss of predicted latents and its gradient in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


class LatentCall(NamedTuple):
    """The arguments that the three ops have in common, in the order of their schemas."""

    pred: Tensor  # (P, K, D)
    target: Tensor  # (N, L, D), P a multiple of N
    ids: Tensor | None  # (P, K) int64, or None: K = L
    weight: Tensor | None  # (P, K) float32
    loss: str
    value: float
    normalize: bool
    eps: float
    mean: bool


def _prepared(call: LatentCall) -> tuple[Tensor, Tensor]:
    """The errors e (P, K, D) of the rows and their weights (P, K), in float32 or wider; an id out of range has weight 0."""
    wide = accumulator_dtype(call.pred)
    rows, tokens, _ = call.pred.shape
    sample = torch.arange(rows, device=call.pred.device)[:, None] % call.target.shape[0]
    ids = torch.arange(tokens, device=call.pred.device)[None, :] if call.ids is None else call.ids
    known = (ids >= 0) & (ids < call.target.shape[1])
    target = call.target[sample, torch.where(known, ids, 0)].to(wide)
    if call.normalize:
        target = torch.nn.functional.layer_norm(target, target.shape[2:], eps=call.eps)
    weight = torch.ones((), dtype=wide, device=call.pred.device) if call.weight is None else call.weight.to(wide)
    return call.pred.to(wide) - target, torch.where(known, weight, 0.0).expand(rows, tokens)


def _each(error: Tensor, loss: str, value: float) -> Tensor:
    """d(e)."""
    size = error.abs()
    if loss == "l1":
        return size
    if loss == "l2":
        return error.square()
    if loss == "power":
        return size**value / value
    return torch.where(size < value, 0.5 * error.square() / value if value else size, size - 0.5 * value)


def _slope(error: Tensor, loss: str, value: float) -> Tensor:
    """d'(e)."""
    sign = torch.where(error.isnan(), error, error.sign())
    if loss == "l1":
        return sign
    if loss == "l2":
        return 2.0 * error
    if loss == "power":
        return sign * error.abs() ** (value - 1.0)
    return torch.where(error.abs() < value, error / value if value else sign, sign)


def _share(call: LatentCall) -> float:
    return 1.0 / (call.pred.shape[0] * call.pred.shape[1]) if call.mean else 1.0


def masked_latent_fwd(*arguments) -> tuple[Tensor, Tensor]:
    """Of a ``LatentCall``: loss () and the losses of its rows (P, K)."""
    call = LatentCall(*arguments)
    error, weight = _prepared(call)
    rows = torch.where(weight != 0, _each(error, call.loss, call.value).mean(2) * weight, 0.0)
    return (rows.sum(dtype=torch.float64) * _share(call)).to(rows.dtype), rows


def masked_latent_bwd(grad: Tensor, *arguments) -> Tensor:
    """The gradient of pred, in its dtype: of the loss for grad (), of the rows' losses for grad (P, K)."""
    call = LatentCall(*arguments)
    error, weight = _prepared(call)
    size = grad.to(error.dtype) * weight * (_share(call) / error.shape[2])
    size = torch.where(weight != 0, size, 0.0).expand(weight.shape)[:, :, None]
    slope = torch.where(weight[:, :, None] != 0, _slope(error, call.loss, call.value), 0.0)
    return (slope * size).to(call.pred.dtype)


def masked_latent_one_pass(*arguments) -> tuple[Tensor, Tensor]:
    """Of a ``LatentCall``: loss () and its gradient in pred, for an upstream gradient of 1."""
    loss, _ = masked_latent_fwd(*arguments)
    return loss, masked_latent_bwd(torch.ones_like(loss), *arguments)
