"""VISReg: views that agree, and embeddings whose centre, scale and shape are those of a standard Gaussian (Wu et al. 2026).

    invariance = mean (z_vnd - c_nd)^2,    c_n = mean of the sample's global views
    center = mean_{v, d} mean_vd^2,    scale = mean_{v, d} (1 - sigma_vd)^2,    sigma without Bessel's correction
    shape = mean_{v, s, n} (sort(zhat a_s)_n - Phi^-1(n / (N + 1)))^2,    zhat = (z - mean) / (sigma + eps), sigma a constant
    loss = (1 - lambda) invariance + lambda (lambda_scale scale + lambda_shape shape + lambda_center center)

Projections are sorted tile by tile: ``fastssl/ops/sorted_slices.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype, check_flag, check_number, check_share, check_weight
from fastssl.distributed.gather import rows_of_joined
from fastssl.ops.sorted_slices import sorted_slices

from .parts.arguments import enter, scalar, together
from .parts.directions import check_directions, check_slices, same_directions
from .sigreg import check_global, check_views, invariance

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks


class VISRegTerms(NamedTuple):
    """The loss and its four terms without their weights, scalars each, as ``visreg`` returns them with ``return_terms=True``.

    Attributes:
        total: the loss.
        pred: how far views are from the centre of their sample's global views.
        scale: how far standard deviations are from 1.
        shape: how far sorted projections are from the quantiles of a Gaussian.
        center: how far means are from 0.

    Examples:
        >>> from fastssl.functional import visreg
        >>> visreg(torch.randn(2, 8, 4), slices=16, return_terms=True)._fields
        ('total', 'pred', 'scale', 'shape', 'center')
    """

    total: Tensor
    pred: Tensor
    scale: Tensor
    shape: Tensor
    center: Tensor


def visreg(
    z: Tensor,
    *,
    global_views: int | None = None,
    lambda_param: float = 0.9,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    slices: int = 4096,
    eps: float = 1e-4,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    group: ProcessGroup | Ranks | None = None,
    return_terms: bool = False,
) -> Tensor | VISRegTerms:
    """VISReg (Wu et al. 2026, algorithm 1): invariance of the views, and variance, shape and centre of their embeddings.

    ``(1 - lambda) pred + lambda (w_0 scale + w_1 shape + w_2 center)``; each view is a batch of its own. ``shape`` compares the N
    sorted projections on each of S random directions with the quantiles ``Phi^-1(n / (N + 1))`` of a Gaussian. Embeddings are
    divided by their standard deviation before, which is a constant there. No tensor of size N x S is made on a CPU.

    Args:
        z: (V, N, D) embeddings of N samples, at least 2, in V views, global ones first; float32, bfloat16, float16 or float64.
        global_views: how many views are global; None: all of them.
        lambda_param: lambda, in [0, 1].
        weights: (w_0, w_1, w_2), those of scale, shape and center, each at least 0.
        slices: S, the number of random directions.
        eps: above 0, what is added to a standard deviation before it divides.
        directions: (D, S), as in ``sigreg``.
        generator: as in ``sigreg``.
        seed: as in ``sigreg``.
        group: the processes whose samples are one batch. The mean over processes of losses and gradients is that of one process
            with the joined batch, uneven batches included. The embeddings of all are gathered, and the directions are divided.
        return_terms: whether to return the terms too.

    Returns:
        The loss, a float32 scalar (float64 for float64 input), or ``VISRegTerms``. It can be differentiated once, in z.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: as in ``sigreg``.

    Examples:
        >>> z = torch.randn(2, 512, 16, generator=torch.Generator().manual_seed(0))
        >>> terms = visreg(z, seed=0, return_terms=True)
        >>> round(terms.shape.item(), 3), round(visreg(0.0 * z, seed=0, return_terms=True).shape.item(), 3)
        (0.004, 0.979)
    """
    op = "visreg"
    z, directions = enter(op, z, directions)
    check_views(op, z, 2 if group is None else 1)
    global_views = check_global(op, global_views, z)
    check_share(op, "lambda_param", lambda_param)
    _check_weights(op, weights, z)
    share, (to_scale, to_shape, to_center) = scalar(lambda_param, z), [scalar(weight, z) for weight in weights]
    slices = check_slices(op, "slices", slices)
    check_eps(op, eps)
    check_flag(op, "return_terms", return_terms)
    check_directions(op, z, directions, generator, seed)
    joined = together(op, group, z.transpose(0, 1), slices=slices, seed=seed, eps=eps)
    columns = same_directions(op, z, slices, directions, generator, seed, joined)
    pred = invariance(z, global_views, joined)
    scale, shape, center = _regularisers(op, z, columns, float(eps), joined)
    total = to_scale * scale + to_shape * shape + to_center * center
    total = (1.0 - share) * pred + share * total
    return VISRegTerms(total, pred, scale, shape, center) if return_terms else total


def check_eps(op: str, eps) -> None:
    """A number above 0."""
    check_number(op, "eps", eps, 0.0)
    if eps == 0:
        raise ValueError(f"{op}: eps must be above 0, got {eps}")


def _check_weights(op: str, weights, z: Tensor) -> None:
    if not isinstance(weights, (tuple, list)) or len(weights) != 3:
        raise TypeError(f"{op}: weights must be three numbers, of scale, shape and center, got {weights!r}")
    for weight in weights:
        check_weight(op, "weights", weight, z)


def _regularisers(op: str, z: Tensor, directions: Tensor, eps: float, joined: Joined | None) -> tuple[Tensor, Tensor, Tensor]:
    """scale, shape and center. With several processes shape is this one's share: of the directions it takes every W-th one."""
    z = z.to(accumulator_dtype(z))
    share = 1.0
    if joined is not None:
        z = rows_of_joined(joined, z.transpose(0, 1).contiguous()).transpose(0, 1)
        count = directions.shape[1]
        if count >= joined.world:
            directions = directions[:, joined.rank :: joined.world]
            share = joined.world * directions.shape[1] / count
    mean = z.mean(1, keepdim=True)
    sigma = z.std(1, correction=0, keepdim=True)
    shape = share * sorted_slices(op, (z - mean) / (sigma.detach() + eps), directions.to(z.dtype))
    return (1.0 - sigma).square().mean(), shape, mean.square().mean()
