"""NT-Xent (SimCLR) and its decoupled form (DCL), on ``similarity_lse``.

With the 2B rows z of both views, s_ij = <z_i, z_j> / temperature and p(i) the other view of i's picture,

    NT-Xent_i = softplus(lse_i - s_i,p(i))        DCL_i = lse_i - s_i,p(i)        lse_i = log sum_{j not in {i, p(i)}} exp(s_ij)

softplus(lse - s_pos) is the cross-entropy of the positive among all other rows. The usual form, a log-sum-exp over all of them
minus s_pos, subtracts two large numbers; this one does not, so a loss of 1e-3 keeps its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import check_flag, check_scalar, check_views
from fastssl.ops.normalize import normalize_pair

from .nt_xent_node import pair_loss
from .parts.arguments import enter, scalar, together
from .parts.dot_products import dot_rows
from .parts.ids import row_ids
from .parts.one_call import nt_xent_in_one_call
from .parts.reductions import check_reduction, lse_of, positive_loss, reduce_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks


def checked_pair(
    op: str, names: tuple[str, str], z0: Tensor, z1: Tensor, temperature: float | Tensor, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Both views after the checks, of one dtype."""
    z0, z1 = enter(op, z0, z1)
    check_views(op, names, z0, z1)
    check_scalar(op, "temperature", temperature, z0, zero=False)
    check_flag(op, "normalize", normalize)
    return z0, z1


def pair_terms(
    op: str, z0: Tensor, z1: Tensor, temperature: float | Tensor, normalize: bool, joined: Joined | None
) -> tuple[Tensor, Tensor, Tensor, float | Tensor]:
    """Of a checked pair: z (2B, D), view 0 first; lse (2B,) over the negatives of each row; dot (B,) of each pair; 1 / temperature.

    In several processes the rows of all of them are columns.
    """
    if normalize:
        z, dot = normalize_pair(z0, z1, op=op)
    else:
        z, dot = torch.cat([z0, z1]), dot_rows(z0, z1)
    scale, pair = 1.0 / scalar(temperature, z0), row_ids(z0, joined).repeat(2)
    if joined is None:
        return z, lse_of(op, z, z, scale=scale, x_id=pair), dot, scale
    return z, lse_of(op, z, z, joined.times(2), scale=scale, x_id=pair, y_id=pair), dot, scale


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1), over both views' 2B rows without the 2B x 2B matrix.

    Equals ``F.cross_entropy(z @ z.T / temperature, positives)`` with ``z = normalize(cat([z0, z1]))`` and the diagonal at
    ``-inf``; lightly's ``NTXentLoss(temperature)(z0, z1)``.

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the losses (2B,), those of view 0 first.
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the rows of all its processes are
            negatives. Each process gets its share: the mean of the shares, and of the gradients of the shares, is that of one
            process with the joined batch. Batches may be uneven. None: this process's rows, without communication.

    Returns:
        The loss, float32 (float64 for float64 input), accumulated in that dtype; a scalar unless ``reduction="none"``. Memory
        O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature (0, NaN, infinite), reduction or group.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> z0, z1 = torch.randn(256, 128, requires_grad=True), torch.randn(256, 128)
        >>> loss = nt_xent(z0, z1, temperature=0.1)
        >>> loss.backward()
        >>> nt_xent(z0, z1, reduction="none").shape
        torch.Size([512])
    """
    op = "nt_xent"
    check_reduction(op, reduction)
    if normalize is True and group is None and reduction != "none":
        loss = nt_xent_in_one_call(op, z0, z1, temperature, reduction == "mean")
        if loss is not None:
            return loss
    z0, z1 = checked_pair(op, ("z0", "z1"), z0, z1, temperature, normalize)
    joined = together(op, group, z0, temperature=temperature, normalize=normalize, reduction=reduction, grad=z0.requires_grad)
    if normalize and reduction != "none":
        return of_pair(op, z0, z1, temperature, reduction, joined)
    _, lse, dot, scale = pair_terms(op, z0, z1, temperature, normalize, joined)
    return positive_loss(op, lse, dot, scale, reduction, joined)


def of_pair(op: str, z0: Tensor, z1: Tensor, temperature, reduction: str, joined: Joined | None) -> Tensor:
    """NT-Xent of a checked pair, whose rows are normalised here: one node of the autograd graph where it can be.

    It can be where the temperature is a number and all rows are this process's.
    """
    if isinstance(temperature, Tensor) or torch.compiler.is_compiling() or joined is not None:
        _, lse, dot, scale = pair_terms(op, z0, z1, temperature, True, joined)
        return positive_loss(op, lse, dot, scale, reduction, joined)
    return pair_loss(op, z0, z1, 1.0 / float(temperature), reduction == "mean")


def dcl(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | Ranks | None = None,
    weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent with the positive taken out of the denominator.

    ``DCL_i = log sum_{j not in {i, p(i)}} exp(s_ij) - w_i s_i,p(i)``, where s are the similarities of the 2B rows of both views
    over the temperature, p(i) is the other view of row i, and w_i is 1 unless there is a ``weight_fn``. Equals lightly's
    ``DCLLoss``.

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64. B is at least 2, because a single pair has
            no negatives.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the losses (2B,), those of view 0 first.
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the rows of all its processes are
            negatives. Each process gets its share: the mean of the shares, and of the gradients of the shares, is that of one
            process with the joined batch. Batches may be uneven. None: this process's rows, without communication.
        weight_fn: called as ``weight_fn(own, other)`` for each view, with the rows (B, D) of this view and of the other one as the
            loss sees them; returns the weights (B,) of the positives. None: 1.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. Unlike NT-Xent it may be negative.
        Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, reduction or group; one pair alone in one process.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> z0, z1 = torch.randn(8, 16), torch.randn(8, 16)
        >>> bool(dcl(z0, z1, 0.5) < nt_xent(z0, z1, 0.5))  # the denominator is smaller
        True
    """
    op = "dcl"
    check_reduction(op, reduction)
    z0, z1 = checked_pair(op, ("z0", "z1"), z0, z1, temperature, normalize)
    if weight_fn is not None and not callable(weight_fn):
        raise TypeError(f"{op}: weight_fn must be a function or None, got {type(weight_fn).__name__}")
    joined = together(op, group, z0, temperature=temperature, normalize=normalize, reduction=reduction, grad=z0.requires_grad)
    if joined is None and z0.shape[0] < 2:
        raise ValueError(f"{op}: z0 must have at least 2 rows, since one pair has no negatives, got shape {tuple(z0.shape)}")
    return decoupled(*pair_terms(op, z0, z1, temperature, normalize, joined), weight_fn, reduction, joined)


def decoupled(
    z: Tensor, lse: Tensor, dot: Tensor, scale, weight_fn: Callable | None, reduction: str, joined: Joined | None
) -> Tensor:
    """DCL from the results of ``pair_terms``."""
    positive = scale * dot
    if weight_fn is not None:
        a, b = z.chunk(2)
        positive = positive * torch.stack([weight_fn(a, b), weight_fn(b, a)])
    return reduce_rows(lse.view(2, -1) - positive, reduction, joined)
