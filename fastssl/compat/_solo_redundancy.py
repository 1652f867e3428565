"""solo-learn's losses of Barlow Twins and VICReg, at its scales."""

from __future__ import annotations

from torch import Tensor

from fastssl.checks import check_views, check_weight
from fastssl.distributed import Ranks
from fastssl.distributed.ranks import join
from fastssl.loss.parts.arguments import enter
from fastssl.loss.redundancy import by_gram, correlation_loss, standardized, vicreg

from ._common import gradient_times

EPS = 1e-5  # of torch's batch normalisation


def barlow_loss_func(z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025) -> Tensor:
    """``solo.losses.barlow.barlow_loss_func``: Barlow Twins' loss times 0.025.

    As there, several processes average their correlations, each of which is standardised by the statistics of its process, and the
    gradient is 1 / W of that of this loss. ``fastssl.functional.barlow_twins`` with ``group=`` has neither of the two.

    Args:
        z1: (N, D) projections of the first view, N >= 2.
        z2: (N, D) projections of the second view.
        lamb: the weight of the terms outside the diagonal.
        scale_loss: what the loss is multiplied by.

    Returns:
        The loss, a float32 scalar (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or number.
        RanksError: processes make different calls.

    Examples:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(barlow_loss_func(z, z.flip(1), lamb=0.5).item(), 4)
        0.075
    """
    op = "barlow_loss_func"
    z1, z2 = enter(op, z1, z2)
    check_views(op, ("z1", "z2"), z1, z2)
    if len(z1) < 2:
        raise ValueError(f"{op}: z1 and z2 must have at least 2 rows, got {len(z1)}")
    for name, value in (("lamb", lamb), ("scale_loss", scale_loss)):
        check_weight(op, name, value, z1)
    joined = join(op, Ranks(), z1, lamb=lamb)
    rows = len(z1)
    if joined is not None:
        z1, z2 = gradient_times(1.0 / joined.world, z1), gradient_times(1.0 / joined.world, z2)
        rows = int(joined.counts.sum())
    x, y, _ = standardized(op, z1, z2, EPS, None)
    if joined is not None and rows != joined.world * len(x):
        y = y * (rows / (joined.world * len(x)))  # the mean over processes, not over rows
    return float(scale_loss) * correlation_loss(op, x, y, lamb, rows, by_gram("auto", rows, x.shape[1]), joined)


def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
) -> Tensor:
    """``solo.losses.vicreg.vicreg_loss_func``, whose variance term is twice that of VICReg's repository and of lightly.

    Args:
        z1: (N, D) projections of the first view.
        z2: (N, D) projections of the second view.
        sim_loss_weight: the weight of the invariance term.
        var_loss_weight: the weight of the variance term, the sum over both views.
        cov_loss_weight: the weight of the covariance term.

    Returns:
        The loss over the rows of all processes, a float32 scalar (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or number.
        RanksError: processes make different calls.

    Examples:
        >>> z = torch.zeros(4, 2)  # collapsed: the standard deviations are 0.01 in place of 1
        >>> round(vicreg_loss_func(z, z).item(), 2)
        49.5
    """
    op = "vicreg_loss_func"
    z1, z2 = enter(op, z1, z2)
    check_views(op, ("z1", "z2"), z1, z2)
    weights = {"sim_loss_weight": sim_loss_weight, "var_loss_weight": var_loss_weight, "cov_loss_weight": cov_loss_weight}
    for name, value in weights.items():
        check_weight(op, name, value, z1)
    sim, var, cov = weights.values()
    return vicreg(z1, z2, lambda_param=sim, mu_param=2.0 * var, nu_param=cov, group=Ranks())
