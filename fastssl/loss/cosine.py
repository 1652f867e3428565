"""The losses without negatives, of SimSiam and BYOL, on the fused ``normalize_pair``: two views in, the cosine of each pair out.

    negative_cosine_i = -<p_i, z_i> / (|p_i| |z_i|)        byol_loss_i = |unit(p_i) - unit(z_i)|^2 = 2 + 2 negative_cosine_i

The gradient goes to both sides. Where the target must be a constant, pass ``z.detach()``, as the methods do.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import FLOATS, check_number, check_views, check_whole
from fastssl.ops.normalize import normalize_pair

from .parts.arguments import enter
from .parts.reductions import check_reduction, reduce_rows


def _cosine(op: str, p: Tensor, z: Tensor, reduction: str) -> Tensor:
    """(B,) cosines of the rows of p and z (B, D)."""
    p, z = enter(op, p, z)
    check_reduction(op, reduction)
    check_views(op, ("p", "z"), p, z)
    return normalize_pair(p, z, op=op)[1]


def negative_cosine(p: Tensor, z: Tensor, *, reduction: str = "mean") -> Tensor:
    """Negative cosine similarity, D(p, z) of SimSiam (Chen and He 2021, eq. 1), in [-1, 1].

    Equals ``-F.cosine_similarity(p, z, dim=1).mean()`` and lightly's ``NegativeCosineSimilarity()(p, z)``. Like those, and unlike
    the paper's D, it stops no gradient: pass ``z.detach()``.

    Args:
        p: (B, D) predictions; float32, bfloat16, float16 or float64.
        z: (B, D) targets, same dtype and device; row i is the target of row i of p.
        reduction: "mean" or "sum" over the rows, or "none" for the losses (B,).

    Returns:
        The loss, float32 (float64 for float64 input). A row of zeros has cosine 0. Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or reduction.

    Examples:
        >>> p = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> negative_cosine(p, torch.tensor([[6.0, 8.0], [0.0, 2.0]]), reduction="none").tolist()
        [-1.0, -0.0]
    """
    return reduce_rows(-_cosine("negative_cosine", p, z, reduction), reduction)


def byol_loss(p: Tensor, z: Tensor, *, reduction: str = "mean") -> Tensor:
    """BYOL's regression of one direction (Grill et al. 2020, eq. 2): the squared distance of unit rows, 2 - 2 cos, in [0, 4].

    BYOL adds the two directions, and the targets are constants: ``byol_loss(p0, z1.detach()) + byol_loss(p1, z0.detach())``.

    Args:
        p: (B, D) predictions; float32, bfloat16, float16 or float64.
        z: (B, D) targets, same dtype and device; row i is the target of row i of p. Its gradient is computed where it needs one.
        reduction: "mean" or "sum" over the rows, or "none" for the losses (B,).

    Returns:
        The loss, float32 (float64 for float64 input). A row of zeros has cosine 0. Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or reduction.

    Examples:
        >>> p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> byol_loss(p, torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]]), reduction="none").tolist()
        [0.0, 2.0, 4.0]
    """
    return reduce_rows(2.0 - 2.0 * _cosine("byol_loss", p, z, reduction), reduction)


class NegativeCosineSimilarity(nn.Module):
    """``negative_cosine`` with the arguments of lightly's: ``NegativeCosineSimilarity(dim=1, eps=1e-8)(x0, x1)``.

    Args:
        dim: the dimension along which the cosine is taken; the mean is over all other dimensions.
        eps: the smallest norm that rows are divided by.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = NegativeCosineSimilarity()
        >>> criterion(torch.ones(4, 16), 2.0 * torch.ones(4, 16)).item()
        -1.0
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8):
        super().__init__()
        dim = check_whole("NegativeCosineSimilarity", "dim", dim, -(2**31))
        check_number("NegativeCosineSimilarity", "eps", eps, 0.0)
        self.dim, self.eps = dim, eps

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The mean loss, whose gradient goes to both sides.

        Args:
            x0: (..., D, ...) float32, bfloat16, float16 or float64, with D at the dimension ``dim``.
            x1: of a shape that broadcasts with that of ``x0``. Of two float dtypes the wider one is taken, as
                ``F.cosine_similarity`` does.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: wrong type, dtype, shape or device.
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
    """``byol_loss`` as a module: ``BYOLLoss()(p, z)``.

    Examples:
        >>> BYOLLoss()(torch.ones(4, 16), 2.0 * torch.ones(4, 16)).item()
        0.0
    """

    def forward(self, p: Tensor, z: Tensor) -> Tensor:
        """The mean loss of predictions p and targets z (B, D); the gradient goes to both. Errors as ``byol_loss``."""
        return byol_loss(p, z)
