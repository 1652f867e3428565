"""Statistics of each row for the training log: rank of the positive, accuracy, similarities."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


class RowStats(NamedTuple):
    """Of each row of a contrastive loss, without gradient: what the training scripts of MoCo and CLIP log.

    ``info_nce(..., return_stats=True)`` and ``moco_loss(..., return_stats=True)`` return it beside the loss. ``rank`` is the
    number of negatives that are more similar than the positive, so ``acc1`` is the share of rows with rank 0. A negative does not
    count where rounding alone can explain that its similarity exceeds the positive's. Similarities are inner products as the loss
    saw them, before the temperature.

    Attributes:
        loss: (N,) the loss of each row, float32 (float64 for float64 input).
        rank: (N,) int32, the number of negatives more similar than the positive.
        positive: (N,) similarity of the positive.
        negative: (N,) mean similarity of the negatives.
        acc1: the share of rows with rank 0, a scalar in [0, 1]; NaN where the loss of a row is.
        acc5: the share of rows with a rank below 5.

    Examples:
        >>> stats = row_stats(torch.rand(4), torch.tensor([0, 3, 9, 0]), torch.rand(4), torch.rand(4))
        >>> stats.acc1.item(), stats.acc5.item()
        (0.5, 0.75)
    """

    loss: Tensor
    rank: Tensor
    positive: Tensor
    negative: Tensor
    acc1: Tensor
    acc5: Tensor


def row_stats(loss: Tensor, rank: Tensor, positive: Tensor, negative: Tensor) -> RowStats:
    """The record of losses, ranks and similarities, (N,) each."""
    with torch.no_grad():
        acc1, acc5 = (torch.where(loss.isnan(), torch.nan, (rank < k).float()).mean() for k in (1, 5))
        return RowStats(loss.detach(), rank, positive.detach(), negative.detach(), acc1, acc5)


def rank_bar(query: Tensor, key: Tensor, scale: float | Tensor) -> Tensor:
    """The logit that a negative must exceed to count as more similar than the positive: (N,) in ``accumulator_dtype``.

    query and key are (N, D) as the sweep sees them. A key that equals the positive (a duplicate, a collapsed encoder) is not more
    similar, though the same D products, added in another order, may give another sum. The bar is above the positive's logit by the
    largest difference that this can make (Higham 2002, 3.5):

        bar_i = scale <query_i, key_i> + (D + 8) eps |scale| sum_k |query_ik key_ik|
    """
    with torch.no_grad():
        products, wide = query.double() * key.double(), accumulator_dtype(query)
        slack = (query.shape[1] + 8) * torch.finfo(wide).eps
        if isinstance(scale, Tensor):
            scale = scale.double()
            size: float | Tensor = scale.abs()
        else:
            size = abs(scale)
        return (scale * products.sum(1) + size * slack * products.abs().sum(1)).to(wide)
