"""MMCR: the mean of an image's views should point in a direction of its own (Yerxa et al. 2023).

    Z_b = the k views of image b (k, D),   c_b = their mean,   C = the c_b (B, D)
    loss = -|C|_* + lambda / B sum_b |Z_b|_*                     |A|_* = the sum of the singular values

The singular values are those of thin decompositions; lightly's also makes the D x D orthogonal matrix of each image, which the loss
does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_dense, check_float_dtype, check_like, check_weight
from fastssl.distributed.gather import rows_of_joined

from .parts.arguments import enter, together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Ranks


def mmcr(online: Tensor, momentum: Tensor, lambda_param: float = 5e-3, *, group: ProcessGroup | Ranks | None = None) -> Tensor:
    """Maximum manifold capacity representations, MMCR (Yerxa et al. 2023, eq. 3 and 4).

    ``-|C|_* + lambda / B sum_b |Z_b|_*``, where Z_b are all views of image b, of both encoders, C are their means, and ``|.|_*``
    is the sum of the singular values. Equals lightly's ``MMCRLoss``, value and gradients. Rows are used as given; the paper brings
    them to unit length.

    Args:
        online: (B, K, D) float32, bfloat16, float16 or float64: K views of each image by the online encoder. Computed in float32
            (float64 for float64), under autocast too.
        momentum: (B, K, D), dtype and device of ``online``: by the momentum encoder. Its gradient is computed where it needs one.
        lambda_param: the weight of the second term, at least 0.
        group: processes that compute the loss together (``fastssl.distributed.Ranks``): C has the images of all of them, and the
            mean over processes, of losses and of gradients, is that of one process with the joined batch.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device.
        NotImplementedError: the call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> z = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two images in directions of their own
        >>> mmcr(z, z, lambda_param=0.0).item()
        -2.0
    """
    op = "mmcr"
    online, momentum = enter(op, online, momentum)
    for name, value in (("online", online), ("momentum", momentum)):
        check_dense(op, name, value, "a tensor (B, K, D)")
        check_float_dtype(op, name, value)
        if value.dim() != 3 or 0 in value.shape:
            raise ValueError(f"{op}: {name} must have shape (B, K, D), no side of it 0, got {tuple(value.shape)}")
    if online.shape != momentum.shape:
        shapes = f"{tuple(online.shape)} and {tuple(momentum.shape)}"
        raise ValueError(f"{op}: online and momentum must have the same shape (B, K, D), got {shapes}")
    check_like(op, "momentum", momentum, "online", online)
    check_weight(op, "lambda_param", lambda_param, online)
    joined = together(op, group, online, lambda_param=float(lambda_param))
    z = torch.cat([online, momentum], 1).to(accumulator_dtype(online))
    views, centroids = float(lambda_param) * _nuclear(z).sum(), z.mean(1)
    if joined is None:
        return views / z.shape[0] - _nuclear(centroids)
    return joined.mean(views) - _nuclear(rows_of_joined(joined, centroids))


def _nuclear(a: Tensor) -> Tensor:
    """The sum of the singular values of matrices (..., M, D). Where an element is not finite, which LAPACK refuses, it is NaN, and
    its gradient 0."""
    finite = a.isfinite().all()
    return torch.linalg.matrix_norm(torch.where(finite, a, 0.0), "nuc") * torch.where(finite, 1.0, torch.nan).to(a.dtype)


class MMCRLoss(nn.Module):
    """``mmcr`` with the arguments of lightly's: ``MMCRLoss(lmda=5e-3)(online, momentum)``.

    Args:
        lmda: the weight of the second term, at least 0.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = MMCRLoss()
        >>> online, momentum = torch.randn(8, 2, 16, requires_grad=True), torch.randn(8, 2, 16)
        >>> criterion(online, momentum).backward()
    """

    def __init__(self, lmda: float = 5e-3):
        super().__init__()
        check_weight("MMCRLoss", "lmda", lmda)
        self.lmda = lmda

    def forward(self, online: Tensor, momentum: Tensor) -> Tensor:
        """The loss of K views of B images by two encoders, (B, K, D) each; errors as ``mmcr``."""
        return mmcr(online, momentum, self.lmda)
