"""Distances between rows, and losses over a labelled batch that take a block of rows of distances at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastssl.checks import INTEGERS, accumulator_dtype, check_choice, check_matrix, check_vector

from .dot_products import in_given_dtype, unit_rows
from .row_blocks import map_rows

DISTANCES = ("euclidean", "squared", "cosine")


class _Euclidean(torch.autograd.Function):
    """d_ij = |x_i - y_j| from the differences, so that close rows keep their digits; the gradient where d_ij is 0 is 0.

    dx_i = sum_j w_ij (x_i - y_j), w = grad / d, is computed by two products, because cdist's own backward holds N x M x D elements
    on a GPU. Where rows lie close to each other and far from the origin the two products cancel, so they are computed in float64.
    """

    @staticmethod
    def forward(ctx, x, y):
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, d)
        return d

    @staticmethod
    def backward(ctx, grad):
        x, y, d = ctx.saved_tensors
        with in_given_dtype(x):
            w, dtype = (grad / d.masked_fill(d == 0, math.inf)).double(), x.dtype
            center = midst(y)  # any constant gives the same gradient; one in the midst of the rows gives the least rounding
            x, y = x.double() - center, y.double() - center
            dx = (w.sum(1)[:, None] * x - w @ y).to(dtype) if ctx.needs_input_grad[0] else None
            return dx, ((w.sum(0)[:, None] * y - w.mT @ x).to(dtype) if ctx.needs_input_grad[1] else None)


def midst(y: Tensor) -> Tensor:
    """The median (D,) of 33 rows of y (M, D) in each column. A few huge rows, which would carry a mean away, do not move it."""
    count = y.new_ones(33, dtype=torch.int64).cumsum(0) - 1  # an arange; made from y so that it is a fake tensor where y is one
    index = count * (y.shape[0] - 1) // 32
    return y[index].sort(0).values[16]


def distance_rows(x: Tensor, distance: str) -> Tensor:
    """x (N, D) as the distance functions below take it: in ``accumulator_dtype``, and of unit length for "cosine"."""
    x = x.to(accumulator_dtype(x))
    return unit_rows(x) if distance == "cosine" else x


def _from_euclidean(d: Tensor, x: Tensor, y: Tensor, distance: str) -> Tensor:
    """The distance of the given kind from |x - y|. "cosine" is |x - y|^2 / 2 = 1 - <x, y> of unit rows, which does not cancel.

    Rows too small to be brought to unit length get what their squared norms fall short of 1.
    """
    if distance == "euclidean":
        return d
    if distance == "squared":
        return d.square()
    short_x, short_y = (_shortness(t) for t in (x, y))
    return 0.5 * (d.square() + (short_x[:, None] + short_y if d.dim() == 2 else short_x + short_y))


def _shortness(x: Tensor) -> Tensor:
    """1 - |x_i|^2 (N,) of rows that were too small to be brought to unit length, 0 of all others."""
    left = 1.0 - x.square().sum(1)
    return torch.where(left > 0.5, left, 0.0)


def pair_distance(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """Distances (N, M) of x (N, D) and y (M, D), both from ``distance_rows``."""
    other = y.view_as(y) if y is x else y  # torch.compile accepts no tensor twice
    return _from_euclidean(_Euclidean.apply(x, other), x, y, distance)


def row_distance(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """Distances (N,) of x_i and y_i, x and y (N, D) from ``distance_rows``; the gradient at distance 0 is 0."""
    return _from_euclidean(torch.linalg.vector_norm(x - y, dim=1), x, y, distance)


def class_masks(index: Tensor, labels: Tensor, all_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Two masks (n, N) for a block of n rows of N: columns of the row's own class except itself, and columns of other classes.

    ``index`` (n,) are the places of the block's rows among all, ``labels`` (n,) and ``all_labels`` (N,) their classes.
    """
    same = labels[:, None] == all_labels
    itself = index[:, None] == torch.arange(all_labels.shape[0], device=index.device)
    return same & ~itself, ~same


def masked_lse(s: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of s (n, N) over ``keep``, and which rows keep any column: (n,) each. A row without any gets 0, gradient 0."""
    has = keep.any(1)
    lse = torch.logsumexp(torch.where(has[:, None], s.masked_fill(~keep, -math.inf), 0.0), 1)
    return torch.where(has, lse, 0.0), has


def check_labelled(op: str, features: Tensor, labels: Tensor, distance: str) -> None:
    """The arguments of a loss over a labelled batch: features (N, D), integer labels (N,), one of ``DISTANCES``."""
    check_matrix(op, "features", features, "N, D")
    check_vector(op, "labels", labels, features.shape[0], INTEGERS, "features", features)
    check_choice(op, "distance", distance, DISTANCES)


def map_labelled(
    f: Callable,
    features: Tensor,
    labels: Tensor,
    distance: str,
    *rows: Tensor,
    shared: tuple[Tensor, ...] = (),
    cubic: bool = False,
) -> tuple:
    """``map_rows`` of f(d (n, N), same (n, N), other (n, N), *rows (n,), *shared) over the rows of a labelled batch.

    d are the distances of a block of n rows to all N, ``same`` and ``other`` the masks of ``class_masks``. ``cubic`` says that f
    makes N x N elements of each row.
    """
    z = distance_rows(features, distance)
    n = z.shape[0]

    def block(x, label, index, *rest):
        *more, z, labels = rest[: len(rows) + 2]
        return f(pair_distance(x, z, distance), *class_masks(index, label, labels), *more, *rest[len(rows) + 2 :])

    index = torch.arange(n, device=z.device)
    return map_rows(block, (z, labels, index, *rows), (z, labels, *shared), n * n if cubic else n)
