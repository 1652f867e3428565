"""NT-Xent with corrected negatives: debiased (Chuang et al. 2020) and hard-negative-weighted (Robinson et al. 2021).

    N = 2B - 2 negatives of each row, p_i = s_i,p(i), floor = N exp(-1 / temperature)
    debiased  G_i = sum_j exp(s_ij)
    hard      G_i = N sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij)
    loss_i = softplus(log max((G_i - tau_plus N exp(p_i)) / (1 - tau_plus), floor) - p_i)

The sums are log-sum-exps: one sweep, or two with a beta. They stay in the log domain, so small temperatures do not overflow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import check_flag, check_number, check_scalar, check_views

from .parts.arguments import enter, scalar, together
from .parts.dot_products import paired
from .parts.ids import row_ids
from .parts.reductions import check_reduction, log_of, lse_of, reduce_rows, softplus

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Ranks


def _log_debiased(log_sum: Tensor, positive: Tensor, count: int | Tensor, tau_plus, scale) -> Tensor:
    """log max((e^log_sum - tau_plus N e^positive) / (1 - tau_plus), N e^-scale), where tau_plus is None for 0; a NaN stays one."""
    floor = log_of(count, positive) - scale
    if tau_plus is not None:
        expected = tau_plus * count
        log = torch.log if isinstance(expected, Tensor) else math.log
        log1p = torch.log1p if isinstance(tau_plus, Tensor) else math.log1p
        gap = log(expected) + positive - log_sum  # the corrected sum is positive where gap < 0
        fits = gap < 0.0
        rest = torch.log(-torch.expm1(torch.where(fits, gap, -1.0)))
        log_sum = torch.where(fits, log_sum + rest - log1p(-tau_plus), torch.where(gap.isnan(), gap, -math.inf))
    return log_sum.clamp(min=floor)


def hard_nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """NT-Xent whose negatives are weighted by exp(beta s) (Robinson et al. 2021, eq. 4) and debiased by ``tau_plus``.

    With N = 2B - 2 negatives of each row, similarities s over the temperature, and p(i) the other view of row i:

    ``G_i = N sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij)``

    ``loss_i = log(1 + max((G_i - tau_plus N e^s_i,p(i)) / (1 - tau_plus), N e^(-1 / temperature)) / e^s_i,p(i))``

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64. B is at least 2, because a single pair has
            no negatives.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        tau_plus: probability that a negative is of the row's own class, in [0, 1).
        beta: concentration on the hard negatives, at least 0; 0 is ``debiased_nt_xent``.
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the losses (2B,), those of view 0 first.
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the rows of all its processes are
            negatives. Each process gets its share: the mean of the shares, and of their gradients, is that of one process with
            the joined batch. None: this process's rows alone.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, tau_plus, beta, reduction or group; one pair alone in
            one process.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> z0, z1 = torch.randn(8, 16), torch.randn(8, 16)
        >>> plain = hard_nt_xent(z0, z1, 0.5, tau_plus=0.0, beta=0.0)
        >>> bool(plain < hard_nt_xent(z0, z1, 0.5, tau_plus=0.0, beta=1.0))  # the similar negatives weigh more
        True
    """
    return _corrected("hard_nt_xent", z0, z1, temperature, tau_plus, beta, normalize, reduction, group)


def debiased_nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    tau_plus: float = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """Debiased contrastive loss (Chuang et al. 2020, eq. 8) over the negatives of both views.

    NT-Xent takes every other row for a negative, though some are of the row's own class. Their share ``tau_plus`` is estimated from
    the positive and subtracted. With N = 2B - 2 negatives of each row, similarities s over the temperature, and p(i) the other
    view of row i:

    ``loss_i = log(1 + max((sum_j e^s_ij - tau_plus N e^s_i,p(i)) / (1 - tau_plus), N e^(-1 / temperature)) / e^s_i,p(i))``

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64. B is at least 2, because a single pair has
            no negatives.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        tau_plus: probability that a negative is of the row's own class, in [0, 1).
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the losses (2B,), those of view 0 first.
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the rows of all its processes are
            negatives. Each process gets its share: the mean of the shares, and of their gradients, is that of one process with
            the joined batch. None: this process's rows alone.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, tau_plus, reduction or group; one pair alone in one
            process.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> from fastssl.functional import nt_xent
        >>> z0, z1 = torch.randn(8, 16), torch.randn(8, 16)
        >>> uncorrected = debiased_nt_xent(z0, z1, 0.5, tau_plus=0.0)
        >>> torch.allclose(uncorrected, nt_xent(z0, z1, 0.5))
        True
    """
    return _corrected("debiased_nt_xent", z0, z1, temperature, tau_plus, 0.0, normalize, reduction, group)


def _corrected(op, z0, z1, temperature, tau_plus, beta, normalize, reduction, group) -> Tensor:
    """Checks the arguments of both losses, and computes them."""
    z0, z1 = enter(op, z0, z1)
    check_reduction(op, reduction)
    check_views(op, ("z0", "z1"), z0, z1)
    check_scalar(op, "temperature", temperature, z0, zero=False)
    check_number(op, "tau_plus", tau_plus, 0.0, 1.0)
    check_number(op, "beta", beta, 0.0)
    check_scalar(op, "beta", beta, z0)
    check_flag(op, "normalize", normalize)
    how = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta, "normalize": normalize}
    joined = together(op, group, z0, **how, grad=z0.requires_grad)
    if joined is None and z0.shape[0] < 2:
        raise ValueError(f"{op}: z0 must have at least 2 rows, since one pair has no negatives, got shape {tuple(z0.shape)}")
    if not isinstance(temperature, Tensor):
        check_scalar(op, "beta, in (1 + beta) / temperature,", (1.0 + beta) / temperature, z0)
    a, b, dot = paired(op, z0, z1, normalize)
    z, pair = torch.cat([a, b]), row_ids(z0, joined).repeat(2)
    scale, count = 1.0 / scalar(temperature, z0), 2 * (len(z0) if joined is None else joined.total) - 2
    weight, of_all = scalar(beta, z0), None if joined is None else joined.times(2)
    ids = {"x_id": pair, "y_id": None if joined is None else pair}
    log_sum = lse_of(op, z, z, of_all, scale=(1.0 + weight) * scale, **ids)
    if beta > 0.0:
        log_sum = log_sum + log_of(count, z) - lse_of(op, z, z, of_all, scale=weight * scale, **ids)
    positive = (scale * dot).repeat(2)
    share = scalar(tau_plus, z0) if tau_plus > 0.0 else None
    losses = softplus(_log_debiased(log_sum, positive, count, share, scale) - positive)
    return reduce_rows(losses.view(2, -1), reduction, joined)
