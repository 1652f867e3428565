"""Drop-ins for pytorch-metric-learning 2.9: ``SupConLoss`` and ``NTXentLoss``, which keep the interface of the library's classes.

They derive from the library's classes, so distance, reducer, regularizer, statistics and wrappers (``SelfSupervisedLoss``,
``CrossBatchMemory``, ``DistributedLossWrapper``) are the library's. Only ``compute_loss`` is ours: it gives the same losses of the
same rows or pairs without an N x M matrix. It serves calls whose distance is the plain ``CosineSimilarity``, with integer labels,
float32 or float64 embeddings and no ``indices_tuple``. For all others, such as those with a miner or in ``CrossBatchMemory``, the
library's own code runs.
"""

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from fastssl.checks import INTEGERS
from fastssl.loss.parts.dot_products import dot_rows, unit_rows
from fastssl.loss.parts.ids import arange_ids, compact_ids
from fastssl.loss.parts.reductions import softplus
from fastssl.ops.similarity import similarity_lse

__all__ = ["NTXentLoss", "SupConLoss"]

BLOCK_ELEMENTS = 1 << 24  # comparisons of labels held at once, a byte each


class SupConLoss(theirs.SupConLoss):
    """``pytorch_metric_learning.losses.SupConLoss``, same arguments; the mean over anchors with positives is its reducer's.

    Examples:
        >>> from fastssl.compat.pml import SupConLoss
        >>> embeddings, labels = torch.randn(8, 16, requires_grad=True), torch.arange(8) % 4
        >>> SupConLoss(temperature=0.1)(embeddings, labels).backward()
        >>> embeddings.grad.shape
        torch.Size([8, 16])
    """

    def compute_loss(self, embeddings: Tensor, labels: Tensor, indices_tuple, ref_emb: Tensor, ref_labels: Tensor) -> dict:
        """embeddings (N, D), labels (N,), ref_emb (M, D), ref_labels (M,) -> the losses (N,) as their reducers want them."""
        if not _serves(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        itself, scale = ref_emb is embeddings, 1.0 / self.temperature
        x = unit_rows(embeddings)
        y = x if itself else unit_rows(ref_emb)
        ids = compact_ids(torch.cat([ref_labels, labels]))
        of_y, of_x = ids[: len(y)], ids[len(y) :]
        sums = y.new_zeros(len(ids), y.shape[1]).index_put((of_y,), y, accumulate=True)[of_x]
        count = y.new_zeros(len(ids)).index_put((of_y,), y.new_ones(len(y)), accumulate=True)[of_x]
        if itself:
            sums, count = sums - x, count - 1
        if _too_few(count, len(x), len(y) - itself):
            return self.zero_losses()
        own = arange_ids(x)
        lse = similarity_lse(x, y, scale=scale, x_id=own) if itself else similarity_lse(x, y, scale=scale)
        rows = torch.where(count > 0, lse - scale * dot_rows(x, sums) / count.clamp_min(1), 0.0)
        return {"loss": {"losses": rows, "indices": own.long(), "reduction_type": "element"}}


class NTXentLoss(theirs.NTXentLoss):
    """``pytorch_metric_learning.losses.NTXentLoss``, same arguments: a loss for each positive pair.

    Examples:
        >>> from fastssl.compat.pml import NTXentLoss
        >>> embeddings, labels = torch.randn(8, 16, requires_grad=True), torch.arange(8) % 4
        >>> NTXentLoss(temperature=0.1)(embeddings, labels).backward()
        >>> embeddings.grad.shape
        torch.Size([8, 16])
    """

    def compute_loss(self, embeddings: Tensor, labels: Tensor, indices_tuple, ref_emb: Tensor, ref_labels: Tensor) -> dict:
        """embeddings (N, D), labels (N,), ref_emb (M, D), ref_labels (M,) -> the losses (P,) as their reducers want them."""
        if not _serves(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        itself, scale = ref_emb is embeddings, 1.0 / self.temperature
        anchor, positive = _positive_pairs(labels, ref_labels, itself)
        negatives = len(labels) * (len(ref_labels) - itself) - len(anchor)
        if len(anchor) == 0 or negatives == 0 or (len(anchor) == 1 and negatives == 1):
            return self.zero_losses()
        x = unit_rows(embeddings)
        y = x if itself else unit_rows(ref_emb)
        lse = similarity_lse(x, y, scale=scale, x_id=labels, y_id=ref_labels)
        pairs = softplus(lse[anchor] - scale * dot_rows(x[anchor], y[positive]))
        return {"loss": {"losses": pairs, "indices": (anchor, positive), "reduction_type": "pos_pair"}}


def _serves(loss, embeddings: Tensor, labels, indices_tuple, ref_emb: Tensor, ref_labels) -> bool:
    distance = loss.distance
    same = (ref_emb is embeddings) == (ref_labels is labels)
    return (
        indices_tuple is None
        and type(distance) is CosineSimilarity
        and (distance.p, distance.power, distance.collect_stats) == (2, 1, False)
        and same
        and all(isinstance(t, Tensor) and t.dtype in INTEGERS and t.dim() == 1 for t in (labels, ref_labels))
        and labels.dtype == ref_labels.dtype
        and embeddings.dtype == ref_emb.dtype
        and embeddings.dtype in (torch.float32, torch.float64)
        and embeddings.dim() == ref_emb.dim() == 2
        and embeddings.shape[1] == ref_emb.shape[1]
        and 0 not in (*embeddings.shape, *ref_emb.shape)
    )


def _too_few(count: Tensor, rows: int, columns: int) -> bool:
    """Whether no pair is positive, none negative, or just one of each, where the library gives no loss. The host waits for it."""
    positives = int(count.sum(dtype=torch.float64))
    negatives = rows * columns - positives
    return positives == 0 or negatives == 0 or (positives == 1 and negatives == 1)


def _positive_pairs(labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor]:
    """labels (N,), ref_labels (M,) -> the rows and the columns (P,) of equal labels, row after row, itself left out."""
    found = []
    for start in range(0, len(labels), rows := max(1, BLOCK_ELEMENTS // len(ref_labels))):
        same = labels[start : start + rows, None] == ref_labels
        if itself:
            same[:, start : start + rows].fill_diagonal_(False)
        row, column = same.nonzero(as_tuple=True)
        found.append((row + start, column))
    return torch.cat([row for row, _ in found]), torch.cat([column for _, column in found])
