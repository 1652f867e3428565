"""For the Barlow Twins repository: its loss behind the projector, as a module and as the forward of its ``BarlowTwins``.

With several processes the loss is that of the joined batch, where statistics are those of all processes too: where the batch
normalisation is a SyncBatchNorm, which the repository's script makes of it. The gradient keeps the repository's scale, 1 / W of
that of one process, since its all-reduce passes no gradient on: a learning rate that was found with it stays right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastssl.checks import accumulator_dtype, check_views, check_weight, check_whole
from fastssl.distributed import Ranks
from fastssl.distributed.ranks import join
from fastssl.distributed.standardize import moments_of_all
from fastssl.loss.parts.arguments import enter
from fastssl.loss.redundancy import by_gram, correlation_loss, standardized
from fastssl.ops.standardize import moments_of

from ._common import gradient_times

__all__ = ["BarlowTwinsLoss", "forward"]


@torch.no_grad()
def _update_running(bn: _BatchNorm, moments: Tensor, rows: int) -> None:
    """The running statistics of ``bn`` after it has seen the first and then the second view."""
    if not bn.training or bn.running_mean is None or bn.running_var is None:
        return
    for mean, var in zip(moments[:2], moments[2:], strict=True):
        share = bn.momentum
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
            if share is None:
                share = 1.0 / bn.num_batches_tracked.item()
        share = 0.0 if share is None else share
        bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), share)
        bn.running_var.lerp_((var * (rows / (rows - 1))).to(bn.running_var.dtype), share)


def _loss(op: str, bn: _BatchNorm, z1: Tensor, z2: Tensor, lambd: float, batch_size: int) -> Tensor:
    z1, z2 = enter(op, z1, z2)
    check_views(op, ("z1", "z2"), z1, z2)
    check_weight(op, "lambd", lambd, z1)
    joined = join(op, Ranks(), z1, lambd=lambd, batch_size=batch_size)
    rows = len(z1) if joined is None else int(joined.counts.sum())
    gram = by_gram("auto", rows, z1.shape[1])
    if joined is not None:
        z1, z2 = gradient_times(1.0 / joined.world, z1), gradient_times(1.0 / joined.world, z2)
    if not bn.training and bn.running_mean is not None:
        x, y = (bn(z.to(accumulator_dtype(z))) for z in (z1, z2))
        return correlation_loss(op, x, y, lambd, batch_size, gram, joined)
    everywhere = joined if isinstance(bn, nn.SyncBatchNorm) else None
    if len(z1) < 2 and everywhere is None:
        raise ValueError(f"{op}: z1 and z2 must have at least 2 rows, got {len(z1)}")
    moments = moments_of(z1.detach(), z2.detach()) if everywhere is None else moments_of_all(everywhere, z1.detach(), z2.detach())
    _update_running(bn, moments, len(z1) if everywhere is None else rows)
    x, y, _ = standardized(op, z1, z2, bn.eps, everywhere, moments)
    return correlation_loss(op, x, y, lambd, batch_size, gram, joined)


class BarlowTwinsLoss(nn.Module):
    """What the repository's ``BarlowTwins`` computes behind the projector, with its state: the buffers of ``bn``.

    Args:
        features: D, the width of the projector's output.
        lambd: the weight of the terms outside the diagonal.
        batch_size: the number of rows of all processes, by which the correlation is divided.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> criterion = BarlowTwinsLoss(8, batch_size=16)
        >>> loss = criterion(torch.randn(16, 8, requires_grad=True), torch.randn(16, 8))
        >>> sorted(criterion.state_dict())
        ['bn.num_batches_tracked', 'bn.running_mean', 'bn.running_var']
    """

    def __init__(self, features: int, lambd: float = 0.0051, batch_size: int = 2048):
        super().__init__()
        op = "BarlowTwinsLoss"
        check_weight(op, "lambd", lambd)
        self.lambd, self.batch_size = lambd, check_whole(op, "batch_size", batch_size, 1)
        self.bn = nn.BatchNorm1d(check_whole(op, "features", features, 1), affine=False)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of the projections z1 and z2 (N, D) of both views, a float32 scalar (float64 for float64).

        Raises:
            TypeError, ValueError: wrong type, dtype, shape or device.
            RanksError: processes make different calls.
        """
        return _loss("BarlowTwinsLoss", self.bn, z1, z2, self.lambd, self.batch_size)


def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
    """``BarlowTwins.forward`` of the repository: the loss of two batches of views (N, 3, H, W).

    Args:
        self: the repository's module, with ``backbone``, ``projector``, ``bn`` and ``args`` (``lambd`` and ``batch_size``).
        y1: the first views.
        y2: the second views.

    Returns:
        The loss, a float32 scalar (float64 for float64).

    Raises:
        TypeError, ValueError, RanksError: as ``BarlowTwinsLoss``.

    Examples:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(backbone=torch.nn.Flatten(), projector=torch.nn.Linear(12, 8))
        >>> model.bn, model.args = torch.nn.BatchNorm1d(8, affine=False), SimpleNamespace(lambd=0.0051, batch_size=4)
        >>> forward(model, torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)).shape
        torch.Size([])
    """
    z1, z2 = self.projector(self.backbone(y1)), self.projector(self.backbone(y2))
    return _loss("BarlowTwins", self.bn, z1, z2, self.args.lambd, self.args.batch_size)
