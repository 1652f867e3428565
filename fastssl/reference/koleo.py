"""The terms of KoLeo and their gradient in plain PyTorch. The equations stand in ``fastssl/ops/koleo.py``."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .gather_tokens import gather_tokens_bwd


def koleo_rows(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """z (N, D) -> x (N, D), rows of length 1 in float32 or wider, and their lengths before (N,)."""
    wide = z.to(accumulator_dtype(z))
    norm = torch.linalg.vector_norm(wide, dim=1)
    return wide / norm.clamp_min(eps)[:, None], norm


def _differences(x: Tensor, ids: Tensor, eps: float) -> Tensor:
    return x[: len(ids), None] - x[ids] + eps  # (N, k, D)


def koleo_fwd(x: Tensor, ids: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (M, D) and the ids (N, k) of the neighbours of its first N rows -> terms (N, k) and distances (N, k)."""
    distance = torch.linalg.vector_norm(_differences(x, ids, eps), dim=2)
    return -(distance + eps).log(), distance


def _collected(each: Tensor, ids: Tensor, rows: int) -> Tensor:
    """each (N, k, ...) and ids (N, k) -> the sums (rows, ...) of those with the same id."""
    return gather_tokens_bwd(each.flatten(0, 1)[None], ids.view(1, -1), rows)[0]


def koleo_bwd(
    dterms: Tensor, x: Tensor, ids: Tensor, distance: Tensor, norm: Tensor | None, eps: float, size: int, dtype: torch.dtype
) -> Tensor:
    """dterms (N, k) -> the gradient (M, D) of the rows that x was made of, whose lengths are norm (M,); of x without norm."""
    wide = distance.double()
    factor = torch.where(wide == 0, 0.0, -dterms.double() / (wide + eps) / wide)
    most = torch.finfo(x.dtype).max  # beyond it 0 times a factor would be NaN
    each = factor.clamp(-most, most).to(x.dtype)[:, :, None] * _differences(x, ids, 0.0)
    gradient = -_collected(each, ids, len(x))
    gradient[: len(ids)] += each.sum(1)
    balance = -_collected(factor[:, :, None], ids, len(x))
    balance[: len(ids)] += factor.sum(1, keepdim=True)
    gradient += eps * balance
    if norm is not None:
        along = torch.where(norm < eps, 0.0, (x * gradient).sum(1))
        gradient = (gradient - x * along[:, None]) / norm.clamp_min(eps)[:, None]
    return gradient.to(dtype)
