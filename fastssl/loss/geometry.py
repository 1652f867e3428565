"""Losses of the geometry of a batch: soft nearest neighbours, alignment and uniformity."""

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_matrix, check_number, check_scalar, check_views

from .parts.arguments import enter, scalar
from .parts.distances import check_labelled, distance_rows, map_labelled, masked_lse, midst, row_distance
from .parts.dot_products import dot_rows
from .parts.ids import arange_ids
from .parts.local_rows import warn_local_rows
from .parts.reductions import check_reduction, log_of, lse_of, reduce_rows, softplus


def soft_nearest_neighbor(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    distance: str = "squared",
    reduction: str = "mean",
) -> Tensor:
    """Soft nearest neighbour loss (Frosst, Papernot & Hinton 2019, eq. 1; Salakhutdinov & Hinton 2007), minimised to separate.

    ``L_i = -log(sum_{j != i of i's class} exp(-d_ij / temperature) / sum_{k != i} exp(-d_ik / temperature))``

    computed as softplus(lse over other classes - lse over i's own), so that a small loss keeps its digits. Equals
    pytorch-metric-learning's ``NCALoss(softmax_scale=1 / temperature)`` for unit rows.

    Args:
        features: (N, D) float32, bfloat16, float16 or float64.
        labels: (N,) integers. A row without another of its class is left out of the mean, with gradient 0; without any
            such row the loss is 0.
        temperature: number or one-element float tensor, not 0; a tensor may need a gradient (the paper learns it).
        distance: "squared" (the paper's), "euclidean" or "cosine".
        reduction: "mean" over the rows that count, "sum", or "none" for (N,) with 0 where left out.

    Returns:
        The loss, float32 (float64 for float64 input). One sweep over the distances, a block of rows at a time.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, distance or reduction.
    """
    op = "soft_nearest_neighbor"
    (features,) = enter(op, features)
    check_reduction(op, reduction)
    check_labelled(op, features, labels, distance)
    check_scalar(op, "temperature", temperature, features, zero=False)
    warn_local_rows(op)
    temperature = scalar(temperature, features)
    learned = isinstance(temperature, Tensor)

    def rows(d, same, other, *given):
        s = -d / (given[0] if learned else temperature)
        (own, has_own), (rest, has_rest) = masked_lse(s, same), masked_lse(s, other)
        return torch.where((has_own & has_rest) | own.isnan(), softplus(rest - own), 0.0), has_own

    shared = (temperature,) if learned else ()
    loss, counts = map_labelled(rows, features, labels, distance, shared=shared)
    return loss.sum() / counts.sum().clamp(min=1) if reduction == "mean" else reduce_rows(loss, reduction)


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0, *, reduction: str = "mean") -> Tensor:
    """Alignment of positive pairs (Wang & Isola 2020): ``mean_i |x_i - y_i|^alpha``.

    Args:
        x, y: (N, D) float32, bfloat16, float16 or float64, the paper's of unit length; used as they are.
        alpha: above 0; the gradient at x_i = y_i is 0.
        reduction: "mean" or "sum" over rows, or "none" for (N,).

    Returns:
        The loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, alpha or reduction.
    """
    op = "alignment"
    x, y = enter(op, x, y)
    check_reduction(op, reduction)
    check_views(op, ("x", "y"), x, y)
    check_number(op, "alpha", alpha)
    if alpha <= 0:
        raise ValueError(f"{op}: alpha must be above 0, got {alpha}")
    d = row_distance(distance_rows(x, "euclidean"), distance_rows(y, "euclidean"), "euclidean")
    apart = d != 0  # below alpha = 1 the power's own gradient at 0 is infinite; a NaN stays
    return reduce_rows(torch.where(apart, torch.where(apart, d, 1.0).pow(scalar(alpha, x)), 0.0), reduction)


def uniformity(x: Tensor, t: float | Tensor = 2.0) -> Tensor:
    """Uniformity on the sphere (Wang & Isola 2020): ``log mean_{i < j} exp(-t |x_i - x_j|^2)``, minimised to spread.

    Equals ``torch.pdist(x).pow(2).mul(-t).exp().mean().log()`` without the pairs: -t |x_i - x_j|^2 is an inner product and a
    bias for each side, so it is one ``similarity_lse``. A median of the rows is taken off first, which changes no distance but
    the rounding.

    Args:
        x: (N, D) float32, bfloat16, float16 or float64, at least 2 rows, the paper's of unit length; used as they are.
        t: number or one-element float tensor, not 0; a tensor may need a gradient.

    Returns:
        The loss, float32 (float64 for float64 input). Memory O(N D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or t.
    """
    op = "uniformity"
    (x,) = enter(op, x)
    check_matrix(op, "x", x, "N, D")
    check_scalar(op, "t", t, x, zero=False)
    n = x.shape[0]
    if n < 2:
        raise ValueError(f"{op}: x must have at least 2 rows, since one row makes no pair, got shape {tuple(x.shape)}")
    warn_local_rows(op)
    t, wide = scalar(t, x), x.to(accumulator_dtype(x))
    wide = wide - midst(wide.detach())
    bias = -t * dot_rows(wide, wide)
    lse = bias + lse_of(op, wide, wide, scale=2.0 * t, x_id=arange_ids(x), y_bias=bias)
    return torch.logsumexp(lse, 0) - (log_of(n, lse) + log_of(n - 1, lse))


class SoftNearestNeighborLoss(nn.Module):
    """``soft_nearest_neighbor`` as a module; ``temperature`` may be a learned ``nn.Parameter``."""

    def __init__(self, temperature: float | Tensor = 1.0, distance: str = "squared"):
        super().__init__()
        self.temperature, self.distance = temperature, distance

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (N, D), labels (N,) -> scalar."""
        return soft_nearest_neighbor(features, labels, self.temperature, distance=self.distance)
