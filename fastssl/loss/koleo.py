"""KoLeo: a batch spreads out where each row is far from its nearest neighbour (Sablayrolles et al. 2019, eq. 4).

    x = rows of z at unit length,  j_1(i) .. j_k(i) = the k rows other than i with the largest <x_i, x_j>
    loss = -mean_{i, t} log(|x_i - x_{j_t(i)} + eps|_p + eps)

The similarities are multiplied a block at a time and forgotten. A row is left out of its own neighbours by its place, not by a
similarity that is set to -1: where all cosines are -1, that finds the row itself, whose distance is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_flag, check_matrix, check_number, check_scalar, check_whole
from fastssl.distributed.collectives import known, world_size
from fastssl.distributed.neighbours import neighbours_of_all
from fastssl.ops.gather_tokens import gather_tokens
from fastssl.ops.koleo import koleo_terms, koleo_terms_of
from fastssl.ops.nearest_in_groups import nearest_in_groups

from .parts.arguments import enter, together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Ranks


def koleo(
    z: Tensor,
    *,
    p: float = 2.0,
    topk: int = 1,
    eps: float = 1e-8,
    group_size: int | None = None,
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """The Kozachenko-Leonenko regulariser of DINOv2 and DINOv3, which spreads a batch (Sablayrolles et al. 2019, eq. 4).

    ``-mean over rows i and their topk nearest neighbours j of log(|x_i - x_j + eps|_p + eps)``, x being z at unit length. The
    gradient goes to both rows. Equals ``KoLeoLoss`` of lightly and DINOv2 and, with ``topk`` and ``group_size``, DINOv3's form
    over several processes.

    Args:
        z: (N, D) float32, bfloat16, float16 or float64. Computed in float32 (float64 for float64), under autocast too.
        p: the norm of the distance, at least 1. Neighbours are those of largest cosine whatever p is, in a product of float32 (on
            a GPU in TF32 where ``torch.set_float32_matmul_precision`` allows it).
        topk: how many neighbours of each row count.
        eps: number of at least 0: the smallest norm that rows are divided by; added to each entry of a difference, as
            ``nn.PairwiseDistance`` does, and to the distance. With 0, rows that are equal give an infinite loss.
        group_size: neighbours are sought among this many consecutive rows, which divide N (with ``group``, the rows of all
            processes in rank order); above ``topk``. None: among all rows.
        group: processes that compute the loss together (``fastssl.distributed.Ranks``): neighbours are sought among the rows of
            all of them, and the mean over processes, of losses and of gradients, is that of one process with the joined batch.

    Returns:
        A scalar, float32 (float64 for float64 input). At most 2^22 similarities are held at once. Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape, or too few rows for ``topk`` neighbours.
        NotImplementedError: the call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # at a distance of 2
        >>> round(koleo(z).item(), 4)
        -0.6931
    """
    op = "koleo"
    (z,) = enter(op, z)
    check_matrix(op, "z", z, "N, D")
    check_number(op, "p", p, 1.0)
    check_number(op, "eps", eps, 0.0)
    check_scalar(op, "eps", eps, z)
    p, eps, topk = float(p), float(eps), check_whole(op, "topk", topk, 1)
    if group_size is not None:
        group_size = check_whole(op, "group_size", group_size, 1)
        if group_size <= topk:
            raise ValueError(f"{op}: group_size must be above topk = {topk}, got {group_size}")
    joined = together(op, group, z, p=p, topk=topk, eps=eps, group_size=group_size)
    if joined is None:
        size = _checked_size(op, z.shape[0], topk, group_size)
        return (koleo_terms(z, topk, size, eps) if p == 2.0 else _terms(z, topk, size, p, eps)).mean()
    x = _unit(z, eps)
    near = neighbours_of_all(joined, x, topk, group_size)
    return joined.mean((koleo_terms_of(x, near, eps) if p == 2.0 else _terms_of(x, near, p, eps)).sum(), topk)


def _unit(z: Tensor, eps: float) -> Tensor:
    wide = z.to(accumulator_dtype(z))
    return wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(eps)


def _terms(z: Tensor, topk: int, size: int, p: float, eps: float) -> Tensor:
    """``koleo_terms`` for any p."""
    x = _unit(z, eps)
    near = gather_tokens(x[None], nearest_in_groups(x, topk, size).view(1, -1))
    return _terms_of(x, near.view(-1, topk, z.shape[1]), p, eps)


def _terms_of(x: Tensor, near: Tensor, p: float, eps: float) -> Tensor:
    """``koleo_terms_of`` for any p."""
    return -(torch.linalg.vector_norm(x[:, None] - near + eps, p, dim=2) + eps).log()


def _checked_size(op: str, rows: int, topk: int, group_size: int | None) -> int:
    """The number of rows among which neighbours are sought."""
    if rows <= topk:
        raise ValueError(f"{op}: z must have more rows than topk = {topk}, got {rows}")
    if group_size is None:
        return rows
    if rows % group_size:
        raise ValueError(f"{op}: group_size must divide the number of rows {rows}, got {group_size}")
    return group_size


class KoLeoLoss(nn.Module):
    """``koleo`` with the arguments of lightly's ``KoLeoLoss(p=2, eps=1e-8)``, and those of DINOv3's.

    Args:
        p: the norm of the distance.
        eps: what keeps the logarithm finite where two rows are equal.
        group_size: neighbours are sought among this many consecutive rows; None: among all.
        topk: how many neighbours of each row count.
        gather_distributed: whether neighbours are sought among the rows of all processes, where there are several.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = KoLeoLoss()
        >>> round(criterion(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item(), 4)
        -0.6931
    """

    def __init__(
        self,
        p: float = 2,
        eps: float = 1e-8,
        group_size: int | None = None,
        topk: int = 1,
        gather_distributed: bool = False,
    ):
        super().__init__()
        check_number("KoLeoLoss", "p", p, 1.0)
        check_number("KoLeoLoss", "eps", eps, 0.0)
        check_flag("KoLeoLoss", "gather_distributed", gather_distributed)
        self.p, self.eps, self.group_size = p, eps, group_size
        self.topk, self.gather_distributed = check_whole("KoLeoLoss", "topk", topk, 1), gather_distributed
        if group_size is not None:
            self.group_size = check_whole("KoLeoLoss", "group_size", group_size, topk + 1)

    def forward(self, x: Tensor) -> Tensor:
        """The mean loss of rows x (N, D); errors as ``koleo``."""
        group = known(None) if self.gather_distributed and world_size() > 1 else None
        return koleo(x, p=self.p, topk=self.topk, eps=self.eps, group_size=self.group_size, group=group)
