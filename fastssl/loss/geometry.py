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

    It is computed as softplus(lse over other classes - lse over i's own), so that a small loss keeps its digits. Equals
    pytorch-metric-learning's ``NCALoss(softmax_scale=1 / temperature)`` for unit rows.

    Args:
        features: (N, D) float32, bfloat16, float16 or float64.
        labels: (N,) integers. A row without another of its class is left out of the mean, with gradient 0; without any row that
            has one the loss is 0.
        temperature: divides the distances; a number or a one-element float tensor, not 0. A tensor may need a gradient (the paper
            learns it).
        distance: "squared" (the paper's), "euclidean" or "cosine" (1 - cosine).
        reduction: "mean" over the rows that count, "sum", or "none" for the losses (N,) with 0 where a row is left out.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. One sweep over the distances, a block
        of rows at a time.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, distance or reduction.

    Examples:
        >>> features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]])
        >>> near = soft_nearest_neighbor(features, torch.tensor([0, 0, 1, 1]))
        >>> bool(near < soft_nearest_neighbor(features, torch.tensor([0, 1, 0, 1])))
        True
    """
    op = "soft_nearest_neighbor"
    (features,) = enter(op, features)
    check_reduction(op, reduction)
    check_labelled(op, features, labels, distance)
    check_scalar(op, "temperature", temperature, features, zero=False)
    warn_local_rows(op)
    divisor = scalar(temperature, features)

    def rows(d, same, other, *given):
        s = -d / (given[0] if given else divisor)
        (own, has_own), (rest, has_rest) = masked_lse(s, same), masked_lse(s, other)
        return torch.where((has_own & has_rest) | own.isnan(), softplus(rest - own), 0.0), has_own

    shared = (divisor,) if isinstance(divisor, Tensor) else ()  # a tensor that needs a gradient reaches the blocks as an argument
    loss, counts = map_labelled(rows, features, labels, distance, shared=shared)
    return loss.sum() / counts.sum().clamp(min=1) if reduction == "mean" else reduce_rows(loss, reduction)


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0, *, reduction: str = "mean") -> Tensor:
    """Alignment of positive pairs (Wang & Isola 2020, section 4.1): ``mean_i |x_i - y_i|^alpha``.

    Args:
        x: (N, D) float32, bfloat16, float16 or float64; used as given, the paper's rows have unit length.
        y: (N, D), dtype and device of ``x``; row i is the positive of row i.
        alpha: the exponent, above 0. The gradient where x_i = y_i is 0.
        reduction: "mean" or "sum" over the rows, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, alpha or reduction.

    Examples:
        >>> alignment(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])).item()  # |x - y| = 5
        25.0
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
    """Uniformity on the sphere (Wang & Isola 2020, section 4.1): ``log mean_{i < j} exp(-t |x_i - x_j|^2)``, minimised to spread.

    Equals ``torch.pdist(x).pow(2).mul(-t).exp().mean().log()`` without the pairs: -t |x_i - x_j|^2 is an inner product and a
    bias for each side, so it is one ``similarity_lse``. A median of the rows is subtracted from all of them first: no distance
    changes, and the inner products are rounded less.

    Args:
        x: (N, D) float32, bfloat16, float16 or float64, at least 2 rows; used as given, the paper's rows have unit length.
        t: multiplies the squared distances; a number or a one-element float tensor, not 0. A tensor may need a gradient.

    Returns:
        A scalar, float32 (float64 for float64 input). Memory O(N D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or t.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # one pair, at a squared distance of 4
        >>> round(uniformity(x, t=2.0).item(), 4)
        -8.0
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
    """``soft_nearest_neighbor`` as a module.

    Args:
        temperature: divides the distances; a number, or a one-element float tensor such as a learned ``nn.Parameter``; not 0.
        distance: "squared", "euclidean" or "cosine".

    Examples:
        >>> criterion = SoftNearestNeighborLoss(temperature=torch.nn.Parameter(torch.tensor(2.0)))
        >>> criterion(torch.randn(8, 16), torch.arange(8) % 2).backward()
        >>> criterion.temperature.grad.shape
        torch.Size([])
    """

    def __init__(self, temperature: float | Tensor = 1.0, distance: str = "squared"):
        super().__init__()
        self.temperature, self.distance = temperature, distance

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of features (N, D) with integer labels (N,); errors as ``soft_nearest_neighbor``."""
        return soft_nearest_neighbor(features, labels, self.temperature, distance=self.distance)
