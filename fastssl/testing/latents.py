"""Inputs and eager forms of the losses of neighbours and of latent targets, for the table in ``cases.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype


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
