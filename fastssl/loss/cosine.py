"""The losses without negatives, of SimSiam and BYOL, on the fused ``normalize_pair``: two views in, the cosine of each pair out.

    negative_cosine_i = -<p_i, z_i> / (|p_i| |z_i|)        byol_loss_i = |unit(p_i) - unit(z_i)|^2 = 2 + 2 negative_cosine_i

The target z is used as it is given: its gradient is right, and who wants none passes ``z.detach()``, as the methods do.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import FLOATS, check_choice, check_number, check_views, check_whole
from fastssl.ops.normalize import normalize_pair

from .parts.arguments import enter
from .parts.reductions import reduce_rows


def _cosine(op: str, p: Tensor, z: Tensor, reduction: str) -> Tensor:
    """(B,) cosines of the rows of p and z (B, D)."""
    p, z = enter(op, p, z)
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    check_views(op, ("p", "z"), p, z)
    return normalize_pair(p, z, op=op)[1]


def negative_cosine(p: Tensor, z: Tensor, *, reduction: str = "mean") -> Tensor:
    """Negative cosine similarity, D(p, z) of SimSiam (Chen and He 2021, eq. 1), in [-1, 1].

    Equals ``-F.cosine_similarity(p, z, dim=1).mean()`` and lightly's ``NegativeCosineSimilarity()(p, z)``. Like those, and unlike
    the paper's D, it stops no gradient: pass ``z.detach()``.

    Args:
        p: (B, D) predictions; float32, bfloat16, float16 or float64.
        z: (B, D) targets, same dtype and device; row i is that of row i of p.
        reduction: "mean", "sum" or "none" (B,).

    Returns:
        The loss, float32 (float64 for float64 input). A row of zeros has cosine 0. Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or reduction.
    """
    return reduce_rows(-_cosine("negative_cosine", p, z, reduction), reduction)


def byol_loss(p: Tensor, z: Tensor, *, reduction: str = "mean") -> Tensor:
    """BYOL's regression of one direction (Grill et al. 2020, eq. 2): squared distance of unit rows, 2 - 2 cos, in [0, 4].

    Arguments, result and errors as ``negative_cosine``; the method adds the two directions, with ``z.detach()`` of the teacher.
    """
    return reduce_rows(2.0 - 2.0 * _cosine("byol_loss", p, z, reduction), reduction)


class NegativeCosineSimilarity(nn.Module):
    """``negative_cosine`` with the arguments of lightly's: ``NegativeCosineSimilarity(dim=1, eps=1e-8)(x0, x1)``.

    Args:
        dim: along which the cosine is taken; the mean is over all other dimensions.
        eps: norms are clamped at it from below.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8):
        super().__init__()
        dim = check_whole("NegativeCosineSimilarity", "dim", dim, -(2**31))
        check_number("NegativeCosineSimilarity", "eps", eps, 0.0)
        self.dim, self.eps = dim, eps

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1, of shapes that broadcast together, with the dimension ``dim`` -> mean loss; the gradient goes to both.

        Of two float dtypes the wider one is taken, as ``F.cosine_similarity`` does.
        """
        if all(isinstance(x, Tensor) and x.dtype in FLOATS for x in (x0, x1)) and x0.dtype != x1.dtype:
            wider = torch.promote_types(x0.dtype, x1.dtype)
            x0, x1 = x0.to(wider), x1.to(wider)
        x0, x1 = (_rows_along("NegativeCosineSimilarity", self.dim, *pair) for pair in (("x0", x0, x1), ("x1", x1, x0)))
        check_views("NegativeCosineSimilarity", ("x0", "x1"), x0, x1)
        return -normalize_pair(x0, x1, self.eps, "NegativeCosineSimilarity")[1].mean()


def _rows_along(op: str, dim: int, name: str, x: Tensor, other: Tensor) -> Tensor:
    """x (..., D, ...), D at ``dim``, broadcast with ``other`` -> (N, D)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if isinstance(other, Tensor) and x.shape != other.shape:
        try:
            x = x.expand(torch.broadcast_shapes(x.shape, other.shape))
        except RuntimeError:
            shapes = f"{tuple(x.shape)} and {tuple(other.shape)}"
            raise ValueError(f"{op}: x0 and x1 must have shapes that broadcast together, got {shapes}") from None
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{op}: {name} must have the dimension dim = {dim}, got shape {tuple(x.shape)}")
    return x if x.dim() == 2 and dim in (1, -1) else x.movedim(dim, -1).flatten(0, -2) if x.dim() > 1 else x[None]


class BYOLLoss(nn.Module):
    """``byol_loss`` as a module: ``BYOLLoss()(p, z)``."""

    def forward(self, p: Tensor, z: Tensor) -> Tensor:
        """p, z (B, D) -> mean loss; the gradient goes to both."""
        return byol_loss(p, z)
