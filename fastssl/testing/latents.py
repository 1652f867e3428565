"""Inputs and eager forms of the losses of neighbours and of latent targets, for the table in ``cases.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .masking import gather, shuffled


def koleo(z: Tensor, p: float = 2.0, topk: int = 1, eps: float = 1e-8, group_size: int | None = None) -> Tensor:
    """The matrix of cosines, its diagonal filled, and the distances to the largest ones of each row."""
    x = F.normalize(z.to(accumulator_dtype(z)), dim=1, eps=eps)
    losses = []
    for group in x.split(group_size or len(x)):
        itself = torch.eye(len(group), dtype=torch.bool, device=z.device)
        place = (group @ group.T).masked_fill(itself, -torch.inf).topk(topk, dim=1).indices
        losses.append(-(torch.linalg.vector_norm(group[:, None] - group[place] + eps, p, dim=2) + eps).log())
    return torch.cat(losses).mean()


def rows(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, D)."""
    return {"z": torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)}


def mmcr(online: Tensor, momentum: Tensor, lambda_param: float = 5e-3, group=None) -> Tensor:
    """By whole decompositions."""
    z = torch.cat([online, momentum], 1).to(accumulator_dtype(online))
    if not z.isfinite().all():
        return z.sum() * torch.nan
    sums = [torch.linalg.svd(a, full_matrices=False).S.sum() for a in (z.mean(1), z)]
    return lambda_param * sums[1] / len(z) - sums[0]


def tico(z_a: Tensor, z_b: Tensor, covariance=None, beta: float = 0.9, rho: float = 8.0, group=None) -> tuple[Tensor, Tensor]:
    x, y = (F.normalize(z.to(accumulator_dtype(z)), dim=1) for z in (z_a, z_b))
    now = (x.T @ x).detach() / len(x)
    c = (1 - beta) * now + (0.0 if covariance is None else beta * covariance.to(now.dtype))
    return (1 - (x * y).sum(1) + rho * ((x @ c) * x).sum(1)).mean(), c


def masked_latent(
    pred, target, ids=None, *, loss="smooth_l1", beta=1.0, normalize=True, eps=1e-5, weight=None, reduction="mean"
) -> Tensor:  # fmt: skip
    """The target normalised as a whole, gathered, and compared."""
    if isinstance(pred, (tuple, list)):
        how = {"loss": loss, "beta": beta, "normalize": normalize, "eps": eps, "reduction": reduction}
        losses = torch.stack([masked_latent(p, target, i, **how) for p, i in zip(pred, ids, strict=True)])
        return losses.mean() if reduction == "mean" else losses.sum()
    wide = accumulator_dtype(pred)
    h = F.layer_norm(target.to(wide), target.shape[2:], eps=eps) if normalize else target.to(wide)
    h = h.repeat(pred.shape[0] // h.shape[0], 1, 1)
    if isinstance(ids, (tuple, list)):
        times = pred.shape[0] // (len(ids) * target.shape[0])
        ids = torch.cat([block for block in ids for _ in range(times)])
    if ids is not None:
        h = gather(h, ids)
    x = pred.to(wide)
    if loss == "l1":
        each = F.l1_loss(x, h, reduction="none")
    elif loss == "l2":
        each = F.mse_loss(x, h, reduction="none")
    elif loss == "smooth_l1":
        each = F.smooth_l1_loss(x, h, reduction="none", beta=beta)
    else:
        each = (x - h).abs() ** loss / loss
    each = each.mean(2)
    if weight is not None:
        weight = weight.to(wide)
        each = torch.where(weight != 0, each * weight, 0.0)
        if reduction == "mean":
            return torch.where(weight.sum() > 0, each.sum() / weight.sum(), 0.0)
    return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()


def predictions(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, D): two blocks of four tokens of each of N samples, (2 N, 4, D)."""
    return {"pred": rows((2 * shape[0], 4, shape[1]), dtype, device, seed)["z"]}


def latent_case(call, whole=False, **how):
    """Targets (N, 6, D) are a constant: arithmetic on their index. ``whole``: all tokens of one block, with weights."""

    def run(pred):
        n, tokens, width = pred.shape
        count = torch.arange(n * 3 * width, device=pred.device, dtype=torch.float64)
        target = (2.0 * (count * 0.37).sin() + (count**1.5 * 0.01).cos() + 0.5).reshape(n // 2, 6, width).to(pred.dtype)
        if not whole:
            ids = shuffled(n, 6, pred)[:, :tokens]
            return call(pred, target, torch.cat([ids[:, :3], ids[:, :1]], 1), **how)
        weight = torch.arange(n * tokens, device=pred.device).reshape(n, tokens) % 3 / 2.0
        return call(pred, target[:, 1:5], weight=weight, **how)

    return run
