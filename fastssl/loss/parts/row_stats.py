"""Statistics of each row for the training log: rank of the positive, accuracy, similarities."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


class RowStats(NamedTuple):
    """Of each row of a contrastive loss, without gradient: what MoCo's and CLIP's training scripts log.

    ``rank`` is the number of negatives more similar than the positive, so ``acc1`` is the share of rows with rank 0. A negative
    whose similarity exceeds the positive's by no more than rounding can explain does not count (``rank_bar``). Similarities are
    inner products as the loss saw them, before the temperature.
    """

    loss: Tensor  # (N,)
    rank: Tensor  # (N,) int32
    positive: Tensor  # (N,) similarity of the positive
    negative: Tensor  # (N,) mean similarity of the negatives
    acc1: Tensor  # ()
    acc5: Tensor  # ()


def row_stats(loss: Tensor, rank: Tensor, positive: Tensor, negative: Tensor) -> RowStats:
    with torch.no_grad():
        acc1, acc5 = (torch.where(loss.isnan(), torch.nan, (rank < k).float()).mean() for k in (1, 5))
        return RowStats(loss.detach(), rank, positive.detach(), negative.detach(), acc1, acc5)


def rank_bar(query: Tensor, key: Tensor, scale: float | Tensor) -> Tensor:
    """query, key (N, D) as the sweep sees them -> (N,) in ``accumulator_dtype``: the logit that a more similar negative exceeds.

    A key that is the positive once more (a duplicate, a collapsed encoder) is not more similar, though the same D products, added
    in another order, may give another sum. The bar is above the positive's logit by the most that this can be (Higham 2002, 3.5):

        bar_i = scale <query_i, key_i> + (D + 8) eps |scale| sum_k |query_ik key_ik|
    """
    with torch.no_grad():
        products, wide = query.double() * key.double(), accumulator_dtype(query)
        slack = (query.shape[1] + 8) * torch.finfo(wide).eps
        scale = scale.double() if isinstance(scale, Tensor) else scale
        return (scale * products.sum(1) + abs(scale) * slack * products.abs().sum(1)).to(wide)
