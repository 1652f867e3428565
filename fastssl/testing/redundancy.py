"""Barlow Twins, VICReg, Gram anchoring and CKA in eager PyTorch, as a careful user writes them, and the inputs of their cases."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .inputs import Inputs, in_seven_bits, randn


def _off_diagonal(c: Tensor) -> Tensor:
    return c.masked_fill(torch.eye(c.shape[-1], dtype=torch.bool, device=c.device), 0.0)


def barlow_twins(z0, z1, lambda_param=5e-3, eps=1e-5) -> Tensor:
    """Columns standardised by a batch normalisation, then the D x D correlation."""
    x, y = (F.batch_norm(z, None, None, training=True, eps=eps) for z in (z0, z1))
    c = (x.T @ y).to(accumulator_dtype(x)) / len(x)
    return (c.diagonal() - 1.0).square().sum() + lambda_param * _off_diagonal(c).square().sum()


def vicreg(z0, z1, lambda_param=25.0, mu_param=25.0, nu_param=1.0, eps=1e-4) -> Tensor:
    """Sides (N, ..., D), a D x D covariance at each position."""
    wide = accumulator_dtype(z0)
    loss = lambda_param * F.mse_loss(z0, z1).to(wide)
    for z in (z0, z1):
        x = (z - z.mean(0)).flatten(1, -2) if z.dim() > 2 else (z - z.mean(0))[:, None]
        covariance = torch.einsum("npc,npd->pcd", x, x).to(wide) / (len(x) - 1)
        std = (z.var(0).to(wide) + eps).sqrt()
        off = _off_diagonal(covariance).square().sum((1, 2)) / z.shape[-1]
        loss = loss + 0.5 * mu_param * F.relu(1.0 - std).mean() + nu_param * off.mean()
    return loss


def gram_loss(
    student, teacher, normalize=True, image_level=True, remove_negative=False, remove_only_teacher_negative=False
) -> Tensor:
    """The Gram matrices of both sides, and the mean squared difference."""
    wide = accumulator_dtype(student)
    student, teacher = student.to(wide), teacher.detach().to(wide)
    if normalize:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if not image_level:
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    s, t = student @ student.mT, teacher @ teacher.mT
    if remove_only_teacher_negative:
        s = s.masked_fill((s < 0) & (t < 0), 0.0)
    if remove_negative:
        s = s.masked_fill(s < 0, 0.0)
    if remove_negative or remove_only_teacher_negative:
        t = t.masked_fill(t < 0, 0.0)
    return F.mse_loss(s, t)


def cka(student, teacher, mask=None, eps=1e-6) -> Tensor:
    """1 - CKA of each image from its N x N kernels; the mean over images with two rows or more."""
    wide = accumulator_dtype(student)
    student, teacher = student.to(wide), teacher.detach().to(wide)
    if student.dim() == 2:
        student, teacher, mask = student[None], teacher[None], None if mask is None else mask[None]
    kept = torch.ones_like(student[..., 0]) if mask is None else (~mask).to(wide)
    count = kept.sum(1)[:, None, None].clamp_min(1.0)
    centring = torch.diag_embed(kept) - kept[:, :, None] * kept[:, None, :] / count
    k, t = (centring @ (z @ z.mT) @ centring for z in (student, teacher))
    xx, xy, yy = ((a * b).sum((1, 2)) for a, b in ((k, k), (k, t), (t, t)))
    losses, counted = 1.0 - xy / (xx.clamp_min(eps).sqrt() * yy.clamp_min(eps).sqrt()), kept.sum(1) >= 2
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)


def images(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """The patches (3, N, D) of three images."""
    return {"student": randn((3, *shape), dtype, device, seed)}


def one_image(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """The patches (N, D) of one image."""
    return {"student": randn(shape, dtype, device, seed)}


def with_teacher(call, **how):
    """The call with a teacher of width 7: a constant that is made from arithmetic which a compiled graph can trace."""

    def run(student):
        rows = student.shape[:-1].numel()
        angles = torch.arange(rows * 7, device=student.device, dtype=torch.float64).reshape(*student.shape[:-1], 7) ** 2
        return call(student, in_seven_bits(angles.sin()).to(student.dtype), **how)

    return run
