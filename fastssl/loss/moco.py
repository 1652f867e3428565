"""MoCo's losses: queries against their keys and a queue of older keys, or (v3) against the keys of the batch.

    v1, v2   loss_i = softplus(lse_j <q_i, queue_j> / tau  -  <q_i, k_i> / tau)            q, k (N, D), queue of K keys
    v3       2 tau InfoNCE(q, stop_gradient(k))

The queue needs no gradient, so one sweep over it gives the loss and the query's gradient. The queue is neither saved nor copied:
new keys may be pushed onto it between the forward and the backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice, check_flag, check_matrix, check_same_device, check_scalar, check_views
from fastssl.ops.similarity import similarity_lse_rank

from .info_nce import batch_lse
from .parts.arguments import enter, scalar, together
from .parts.dot_products import dot_rows, paired
from .parts.negative_sums import dot_sum
from .parts.reductions import check_reduction, positive_loss, softplus
from .parts.row_stats import RowStats, rank_bar, row_stats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Ranks


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
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        layout: "dk" or "kd".
        return_stats: also return ``RowStats``, which holds acc@1 and acc@5 of the training log; no logits are made for them.
        reduction: "mean" or "sum" over the queries, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``; with ``return_stats`` (loss, RowStats).
        Memory O(N D) above the inputs, whatever K. Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, layout, reduction or temperature.

    Examples:
        >>> query, key, queue = torch.eye(4, 8), torch.eye(4, 8), torch.eye(8)[:, 4:]  # the queue's keys are orthogonal to all
        >>> loss, stats = moco_loss(query, key, queue, temperature=1.0, return_stats=True)
        >>> round(loss.item(), 4), stats.acc1.item()  # log((e + 4) / e)
        (0.9048, 1.0)
    """
    op = "moco_loss"
    query, key = enter(op, query, key)
    check_choice(op, "layout", layout, ("dk", "kd"))
    check_reduction(op, reduction)
    check_views(op, ("query", "key"), query, key)
    check_matrix(op, "queue", queue, "D, K" if layout == "dk" else "K, D")
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_flag(op, "return_stats", return_stats)
    keys = (queue.t() if layout == "dk" else queue).detach()
    if keys.shape[1] != query.shape[1]:
        raise ValueError(f"{op}: queue in layout {layout!r} must hold keys of width {query.shape[1]}, got {tuple(queue.shape)}")
    check_same_device(op, "queue", queue, "query", query)
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


def moco_v3_loss(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    normalize: bool = True,
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """MoCo v3's contrast of one direction (Chen, Xie and He 2021, algorithm 1): ``2 tau InfoNCE``, where the keys are constants.

    MoCo v3 adds the two directions: ``moco_v3_loss(q1, k2) + moco_v3_loss(q2, k1)``.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64.
        key: (N, D), dtype and device of ``query``; key i belongs to query i, and the other rows' keys are its negatives. No
            gradient goes to it.
        temperature: tau, which divides the similarities and multiplies the loss; a number or a one-element float tensor, not 0. A
            tensor may need a gradient.
        normalize: scale rows to unit length first.
        group: a process group, or ``fastssl.distributed.Ranks``: the keys of all its processes are negatives, as in MoCo v3. Each
            process gets its share: the mean of the shares, and of their gradients, is that of one process with the joined batch.
            None: this process's rows alone.

    Returns:
        The mean loss, a scalar, float32 (float64 for float64 input). Memory O(N D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature or group.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> query = torch.randn(8, 16, requires_grad=True)
        >>> moco_v3_loss(query, torch.randn(8, 16)).backward()
        >>> query.grad.shape
        torch.Size([8, 16])
    """
    op = "moco_v3_loss"
    query, key = enter(op, query, key)
    check_views(op, ("query", "key"), query, key)
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_flag(op, "normalize", normalize)
    joined = together(op, group, query, temperature=temperature, normalize=normalize)
    temperature = scalar(temperature, query)
    q, k, dot = paired(op, query, key.detach(), normalize)
    lse, _ = batch_lse(op, q, k, 1.0 / temperature, joined=joined)
    return positive_loss(op, lse, dot, 1.0 / temperature, "mean", joined) * (2.0 * temperature)


class MoCoLoss(nn.Module):
    """``moco_loss`` as a module: ``MoCoLoss(0.07)(query, key, queue)``, all rows of unit length as MoCo's encoders leave them.

    Args:
        temperature: divides the similarities; a number, or a one-element float tensor such as a learned ``nn.Parameter``; not 0.
        layout: "dk", the queue is (D, K) as in the MoCo repository; or "kd", (K, D).

    Raises:
        TypeError, ValueError: another layout.

    Examples:
        >>> criterion = MoCoLoss(0.07)
        >>> query, key = (torch.nn.functional.normalize(torch.randn(8, 16), dim=1) for _ in range(2))
        >>> queue = torch.nn.functional.normalize(torch.randn(16, 4096), dim=0)
        >>> criterion(query, key, queue).shape
        torch.Size([])
    """

    def __init__(self, temperature: float | Tensor = 0.07, layout: str = "dk"):
        super().__init__()
        check_choice("MoCoLoss", "layout", layout, ("dk", "kd"))
        self.temperature, self.layout = temperature, layout

    def forward(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        """The mean loss of queries and keys (N, D) against a queue (D, K), or (K, D) in layout "kd"; errors as ``moco_loss``."""
        loss = moco_loss(query, key, queue, self.temperature, layout=self.layout)
        return cast(Tensor, loss)  # and no statistics, which were not asked for
