"""TiCo: two views agree, and no direction is used more than it was on average (Zhu et al. 2022).

x, y = rows of the two views at unit length,   C <- beta C + (1 - beta) x^T x / N, without gradient
loss = mean_i (1 - <x_i, y_i>) + rho mean_i x_i^T C x_i
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.checks import (
    FLOATS,
    accumulator_dtype,
    check_dense,
    check_flag,
    check_same_device,
    check_share,
    check_views,
    check_weight,
)
from fastssl.distributed.class_sums import sum_of_all
from fastssl.distributed.collectives import known, world_size
from fastssl.ops._register import refuse_transforms

from .parts.arguments import enter, together
from .parts.dot_products import in_given_dtype, matmul

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Ranks


def tico(
    z_a: Tensor,
    z_b: Tensor,
    covariance: Tensor | None = None,
    *,
    beta: float = 0.9,
    rho: float = 8.0,
    group: ProcessGroup | Ranks | None = None,
) -> tuple[Tensor, Tensor]:
    """Transformation invariance and covariance contrast, TiCo (Zhu et al. 2022, eq. 1 and algorithm 1).

    ``mean_i (1 - <x_i, y_i>) + rho mean_i x_i^T C x_i``, x and y being the rows at unit length and
    ``C = beta covariance + (1 - beta) x^T x / N`` a constant. Equals lightly's ``TiCoLoss``, value and gradients.

    Args:
        z_a: (N, D) float32, bfloat16, float16 or float64, at least 2 rows. Computed in float32 (float64 for float64), under
            autocast too.
        z_b: (N, D), dtype and device of ``z_a``: the other view, often by a momentum encoder.
        covariance: (D, D) float, C of the step before, which is not written; None: zeros.
        beta: the share of it that is kept, in [0, 1].
        rho: the weight of the second term, at least 0.
        group: processes that compute the loss together (``fastssl.distributed.Ranks``): C is that of the rows of all of them, and
            the mean over processes, of losses and of gradients, is that of one process with the joined batch.

    Returns:
        The loss, and the new C (D, D), without gradient; both float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or number.
        NotImplementedError: the call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss, covariance = tico(z, z, beta=0.0, rho=1.0)
        >>> round(loss.item(), 4), covariance.tolist()
        (0.5, [[0.5, 0.0], [0.0, 0.5]])
    """
    op = "tico"
    z_a, z_b = enter(op, z_a, z_b)
    refuse_transforms(op, covariance)
    check_views(op, ("z_a", "z_b"), z_a, z_b)
    check_share(op, "beta", beta)
    check_weight(op, "rho", rho, z_a)
    _check_covariance(op, covariance, z_a)
    joined = together(op, group, z_a, beta=float(beta), rho=float(rho))
    if joined is None and z_a.shape[0] < 2:
        raise ValueError(f"{op}: z_a must have at least 2 rows, got shape {tuple(z_a.shape)}")
    x, y = (nn.functional.normalize(z.to(accumulator_dtype(z)), dim=1) for z in (z_a, z_b))
    with torch.no_grad(), in_given_dtype(x):
        product = x.T @ x
        if joined is None:
            mean = product / x.shape[0]
        else:
            mean = sum_of_all(joined, product) / joined.total.to(x.dtype)
        c = (1.0 - float(beta)) * mean
        if covariance is not None:
            c = c + float(beta) * covariance.to(c.dtype)
    losses = 1.0 - (x * y).sum(1) + float(rho) * (matmul(x, c) * x).sum(1)
    return losses.mean() if joined is None else joined.mean(losses.sum()), c


def _check_covariance(op: str, covariance: Tensor | None, z_a: Tensor) -> None:
    if covariance is None:
        return
    check_dense(op, "covariance", covariance, "a tensor (D, D) or None")
    if covariance.dtype not in FLOATS:
        raise TypeError(f"{op}: covariance must be float32, bfloat16, float16 or float64, got {covariance.dtype}")
    if covariance.shape != (z_a.shape[1], z_a.shape[1]):
        wanted = (z_a.shape[1], z_a.shape[1])
        raise ValueError(f"{op}: covariance must have shape {wanted}, got {tuple(covariance.shape)} (follows from z_a)")
    check_same_device(op, "covariance", covariance, "z_a", z_a)


class TiCoLoss(nn.Module):
    """``tico`` with the arguments of lightly's ``TiCoLoss(beta=0.9, rho=8.0, gather_distributed=False)``.

    The covariance ``C`` is a buffer, made at the first call: it moves with the module and is in its state, unlike lightly's, which
    is lost where a run resumes.

    Args:
        beta: the share of the covariance that is kept at each step, in [0, 1].
        rho: the weight of the covariance term, at least 0.
        gather_distributed: whether the rows of all processes count, where there are several.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = TiCoLoss()
        >>> criterion(torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)).backward()
        >>> criterion.state_dict()["C"].shape
        torch.Size([16, 16])
    """

    C: Tensor | None

    def __init__(self, beta: float = 0.9, rho: float = 8.0, gather_distributed: bool = False):
        super().__init__()
        check_share("TiCoLoss", "beta", beta)
        check_weight("TiCoLoss", "rho", rho)
        check_flag("TiCoLoss", "gather_distributed", gather_distributed)
        self.beta, self.rho, self.gather_distributed = beta, rho, gather_distributed
        self.register_buffer("C", None)

    def forward(self, z_a: Tensor, z_b: Tensor, update_covariance_matrix: bool = True) -> Tensor:
        """The loss of two views (N, D); errors as ``tico``.

        Args:
            z_a: (N, D), the online view.
            z_b: (N, D), the other view.
            update_covariance_matrix: whether ``C`` takes in this batch.
        """
        check_flag("TiCoLoss", "update_covariance_matrix", update_covariance_matrix)
        group = known(None) if self.gather_distributed and world_size() > 1 else None
        loss, c = tico(z_a, z_b, self.C, beta=self.beta, rho=self.rho, group=group)
        if update_covariance_matrix:
            self.C = c
        return loss

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """A state with a covariance is taken by a module that has none yet."""
        given = state_dict.get(prefix + "C")
        if given is not None and self.C is None:
            self.C = torch.zeros_like(given)
        super()._load_from_state_dict(state_dict, prefix, *args)
