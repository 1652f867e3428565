"""MoCo's losses: queries against their keys and a queue of older keys, or (v3) against the keys of the batch.

    v1, v2   loss_i = softplus(lse_j <q_i, queue_j> / tau  -  <q_i, k_i> / tau)            q, k (N, D), queue of K keys
    v3       2 tau InfoNCE(q, stop_gradient(k))

The queue needs no gradient: one pass leaves the loss and the query's gradient. It is neither saved nor copied, so the push of
new keys may come between forward and backward.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice, check_data, check_flag, check_matrix, check_scalar, check_views
from fastssl.ops.similarity import similarity_lse_rank

from .info_nce import batch_lse
from .parts.arguments import enter, scalar
from .parts.dot_products import dot_rows, dot_sum, paired
from .parts.local_rows import warn_local_rows
from .parts.reductions import positive_loss, softplus
from .parts.row_stats import RowStats, rank_bar, row_stats


def moco_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    layout: str = "dk",
    return_stats: bool = False,
    reduction: str = "mean",
) -> Tensor | tuple[Tensor, RowStats]:
    """MoCo's contrast (He et al. 2020, eq. 1): each query against its key and every key of the queue.

    Equals ``F.cross_entropy(cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / temperature, zeros)``.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64, of unit length as the encoders of MoCo leave it.
        key: (N, D), dtype and device of ``query``; usually without gradient.
        queue: (D, K) with ``layout="dk"`` as in the MoCo repository, (K, D) with "kd"; a constant. Where its dtype is another
            (a float32 queue under autocast), both sides are brought to the wider one.
        temperature: number or one-element float tensor, not 0; a tensor may need a gradient.
        layout: "dk" or "kd".
        return_stats: also return ``RowStats``: acc@1 and acc@5 of the training log, without logits.
        reduction: "mean", "sum" or "none" (N,).

    Returns:
        The loss, float32 (float64 for float64 input), or (loss, RowStats). Memory O(N D) above the inputs, whatever K.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, layout or temperature.
    """
    op = "moco_loss"
    query, key = enter(op, query, key)
    check_choice(op, "layout", layout, ("dk", "kd"))
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    check_views(op, ("query", "key"), query, key)
    check_matrix(op, "queue", queue, "D, K" if layout == "dk" else "K, D")
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_flag(op, "return_stats", return_stats)
    keys = (queue.t() if layout == "dk" else queue).detach()
    if keys.shape[1] != query.shape[1]:
        raise ValueError(f"{op}: queue in layout {layout!r} must hold keys of width {query.shape[1]}, got {tuple(queue.shape)}")
    if keys.device != query.device:
        raise ValueError(f"{op}: query and queue must be on the same device, got {query.device} and {queue.device}")
    check_data(op, "queue", queue, "query", query)
    if keys.dtype != query.dtype:
        common = torch.promote_types(keys.dtype, query.dtype)
        query, key, keys = query.to(common), key.to(common), keys.to(common)
    scale, dot = 1.0 / scalar(temperature, query), dot_rows(query, key)
    threshold = rank_bar(query, key, scale) if return_stats else None
    lse, rank = similarity_lse_rank(query, keys, scale=scale, threshold=threshold, op=op)
    loss = positive_loss(op, lse, dot, scale, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        rows = softplus(lse - scale * dot)
        negative = dot_sum(query, keys) / len(keys)
    return loss, row_stats(rows, rank, dot, negative)


def moco_v3_loss(query: Tensor, key: Tensor, temperature: float | Tensor = 0.2, *, normalize: bool = True) -> Tensor:
    """MoCo v3's contrast of one direction (Chen, Xie, He 2021, algorithm 1): ``2 tau InfoNCE``, the keys constant.

    The method adds the two directions.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64.
        key: (N, D), dtype and device of ``query``; key i belongs to query i, the other rows' keys are its negatives. A constant.
        temperature: number or one-element float tensor, not 0; a tensor may need a gradient.
        normalize: scale rows to unit length first.

    Returns:
        Scalar, float32 (float64 for float64 input). Memory O(N D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature.
    """
    op = "moco_v3_loss"
    query, key = enter(op, query, key)
    check_views(op, ("query", "key"), query, key)
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_flag(op, "normalize", normalize)
    warn_local_rows(op)
    temperature = scalar(temperature, query)
    q, k, dot = paired(op, query, key.detach(), normalize)
    lse, _ = batch_lse(op, q, k, 1.0 / temperature)
    return positive_loss(op, lse, dot, 1.0 / temperature, "mean") * (2.0 * temperature)


class MoCoLoss(nn.Module):
    """``moco_loss`` as a module: ``MoCoLoss(0.07)(query, key, queue)``, all rows of unit length as MoCo's encoders leave them."""

    def __init__(self, temperature: float | Tensor = 0.07, layout: str = "dk"):
        super().__init__()
        check_choice("MoCoLoss", "layout", layout, ("dk", "kd"))
        self.temperature, self.layout = temperature, layout

    def forward(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        """query, key (N, D), queue (D, K) or (K, D) -> mean loss."""
        return moco_loss(query, key, queue, self.temperature, layout=self.layout)
