"""InfoNCE (van den Oord et al. 2018, eq. 4), the loss of CPC, SimCSE, NNCLR and CLIP, on the similarity log-sum-exp.

    loss_i = -log exp(s_i+) / (exp(s_i+) + sum_j exp(s_ij)) = softplus(lse_i - s_i+),    s = <query, key> / temperature

The positive is left out of lse_i by ids and comes back through softplus, which does not cancel for small losses.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import (
    INTEGERS,
    accumulator_dtype,
    check_choice,
    check_dense,
    check_flag,
    check_like,
    check_matrix,
    check_number,
    check_scalar,
    check_vector,
    check_views,
)
from fastssl.ops.similarity import similarity_lse_rank
from fastssl.ops.similarity_cross import similarity_cross

from .parts.arguments import enter, refuse_group, scalar
from .parts.dot_products import dot_rows, dot_sum, matmul, paired, unit_rows
from .parts.ids import arange_ids, class_sums, compact_ids
from .parts.local_rows import warn_local_rows
from .parts.reductions import positive_loss, reduce_rows, softplus
from .parts.row_stats import RowStats, rank_bar, row_stats


def _excluded_sums(query: Tensor, keys: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Sum over j of <query_i, keys_j> with id_j = id_i (the positive alone without ids), and how many those are: (N,) each."""
    if ids is None:
        return dot_rows(query, keys), 1.0
    wide, compact = accumulator_dtype(keys), compact_ids(ids)
    sums = class_sums(keys.to(wide), compact)[compact]
    ones = torch.ones(len(ids), 1, dtype=wide, device=keys.device)
    return dot_rows(query.to(wide), sums), class_sums(ones, compact)[compact, 0]


def _negative_sums(query: Tensor, keys: Tensor, extra: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Sum of the similarities of each row's negatives, and their number; extra (M, D) are negatives of every row."""
    excluded, count = _excluded_sums(query, keys, ids)
    sums, total = dot_sum(query, keys) - excluded, len(keys) - count
    return (sums, total) if extra is None else (sums + dot_sum(query, extra), total + len(extra))


def _smoothed(loss: Tensor, positive: Tensor, negatives: tuple[Tensor, Tensor | float], scale, smoothing, weight=0.0) -> Tensor:
    """Cross-entropy with label smoothing from the plain one: + eps (s_pos - mean of all logits of the row).

    ``weight`` is what the logits of the negatives hold, in all, beside the scaled similarities.
    """
    total, count = negatives
    smoothing, extra = scalar(smoothing, loss), scalar(weight, loss) / (count + 1.0)
    return loss + smoothing * (scale * (positive - (positive + total) / (count + 1.0)) - extra)


def _paired_terms(query, negative_keys, scale, threshold):
    """lse, rank of a threshold (N,) and sum over each row's own negatives (N, M, D)."""
    wide = accumulator_dtype(query)
    dots = matmul(negative_keys.to(wide), query.to(wide)[:, :, None])[:, :, 0]
    rank = None if threshold is None else (dots * scale > threshold[:, None]).sum(1, dtype=torch.int32)
    return torch.logsumexp(dots * scale, 1), rank, (dots.sum(1), float(dots.shape[1]))


def _check_columns(op, query, negative_keys, negative_mode, hard_negative_keys, ids, symmetric) -> None:
    check_choice(op, "negative_mode", negative_mode, ("unpaired", "paired"))
    others = {"negative_keys": negative_keys, "hard_negative_keys": hard_negative_keys, "ids": ids}
    given = [name for name, value in others.items() if value is not None]
    if len(given) > 1 and "negative_keys" in given:
        raise ValueError(f"{op}: negative_keys replaces the negatives in the batch, so {given[1]} cannot be given with it")
    if symmetric and len(set(given) - {"ids"}) > 0:
        raise ValueError(f"{op}: symmetric=True contrasts the batch with itself; {given[0]} must be None")
    if ids is not None:
        check_vector(op, "ids", ids, query.shape[0], INTEGERS, "query", query)
    for name in ("negative_keys", "hard_negative_keys"):
        value = others[name]
        if value is None:
            continue
        if name == "negative_keys" and negative_mode == "paired":
            check_dense(op, name, value, "a tensor (N, M, D)")
            if value.dim() != 3 or value.shape[0] != query.shape[0] or value.shape[1] == 0:
                wanted = f"(N, M, D) with N = {query.shape[0]}"
                raise ValueError(f"{op}: paired negative_keys must have shape {wanted}, got {tuple(value.shape)}")
        else:
            check_matrix(op, name, value, "M, D")
        check_like(op, name, value, "query", query)
        if value.shape[-1] != query.shape[1]:
            raise ValueError(f"{op}: query and {name} must have the same width D, got {query.shape[1]} and {value.shape[-1]}")


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
    *,
    normalize: bool = True,
    symmetric: bool = False,
    return_stats: bool = False,
    group=None,
    ids: Tensor | None = None,
    hard_negative_keys: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor | tuple[Tensor, RowStats]:
    """InfoNCE of N queries, each with its positive key, without the matrix of similarities.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64.
        positive_key: (N, D), dtype and device of ``query``; key i belongs to query i.
        negative_keys: None: the other rows' keys are the negatives. (M, D) "unpaired": these are, for every query, and the
            batch is not. (N, M, D) "paired": those of row i are. As in info-nce-pytorch.
        temperature: number or one-element float tensor, not 0; a tensor may need a gradient.
        reduction: "mean", "sum" or "none" (N,).
        negative_mode: "unpaired" or "paired".
        normalize: scale all rows to unit length first.
        symmetric: mean of query to key and key to query (negatives from the batch only), both from one sweep; "none" gives
            the (2N,) losses, queries first.
        return_stats: also return ``RowStats`` of the queries.
        group: reserved for negatives from other processes; not there yet.
        ids: (N,) integers. Rows of equal id (captions of one picture, slices of one volume) are not each other's negatives.
        hard_negative_keys: (M, D), more negatives for every query beside the batch, as in supervised SimCSE.
        hard_negative_weight: added to the logit of query i with hard negative i (needs M = N), SimCSE's argument of this name.
        label_smoothing: as in ``F.cross_entropy``, over the positive and the row's negatives.

    Returns:
        The loss, float32 (float64 for float64 input), or (loss, RowStats). Memory O((N + M) D); symmetric as ``clip_loss``.
        Differentiable once; where no key needs a gradient, none is computed and the keys may be overwritten before the backward.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, or arguments that exclude each other.
    """
    op = "info_nce"
    query, positive_key, negative_keys, hard_negative_keys = enter(op, query, positive_key, negative_keys, hard_negative_keys)
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    check_views(op, ("query", "positive_key"), query, positive_key)
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_number(op, "label_smoothing", label_smoothing, 0.0, 1.0)
    check_number(op, "hard_negative_weight", hard_negative_weight)
    for name, flag in (("normalize", normalize), ("symmetric", symmetric), ("return_stats", return_stats)):
        check_flag(op, name, flag)
    _check_columns(op, query, negative_keys, negative_mode, hard_negative_keys, ids, symmetric)
    refuse_group(op, group)
    if hard_negative_weight and (hard_negative_keys is None or len(hard_negative_keys) != len(query) or ids is not None):
        raise ValueError(f"{op}: hard_negative_weight needs one hard negative for each query (M = N) and no ids")
    if negative_keys is None:
        warn_local_rows(op)
    scale = 1.0 / scalar(temperature, query)
    query, key, dot = paired(op, query, positive_key, normalize)
    extra = negative_keys if hard_negative_keys is None else hard_negative_keys
    if extra is not None and normalize:
        extra = unit_rows(extra)
    threshold = rank_bar(query, key, scale) if return_stats else None
    sums = None
    if symmetric:
        return _symmetric(query, key, dot, scale, ids, threshold, label_smoothing, reduction)
    if negative_keys is None:
        lse, rank = batch_lse(op, query, key, scale, extra, ids, hard_negative_weight, threshold)
        if return_stats or label_smoothing:
            sums = _negative_sums(query, key, extra, ids)
    elif negative_mode == "paired":
        lse, rank, sums = _paired_terms(query, extra, scale, threshold)
    else:
        lse, rank = similarity_lse_rank(query, extra, scale=scale, threshold=threshold, op=op)
        if return_stats or label_smoothing:
            sums = dot_sum(query, extra), float(len(extra))
    rows = None
    if label_smoothing:
        rows = _smoothed(softplus(lse - scale * dot), dot, sums, scale, label_smoothing, hard_negative_weight)
        loss = reduce_rows(rows, reduction)
    else:
        loss = positive_loss(op, lse, dot, scale, reduction)
    if not return_stats:
        return loss
    rows = softplus((lse - scale * dot).detach()) if rows is None else rows
    return loss, row_stats(rows, rank, dot, sums[0] / sums[1])


def batch_lse(op, query, key, scale, extra=None, ids=None, weight=0.0, threshold=None):
    """lse over the batch's other keys and the extra ones; with a weight, the row's own hard negative joins on its own."""
    own = arange_ids(query) if ids is None else ids
    if extra is None:
        return similarity_lse_rank(query, key, scale=scale, x_id=own, y_id=own, threshold=threshold, op=op)
    if weight:
        other = own
    elif ids is None:
        other = arange_ids(extra, start=len(query))
    else:
        own = compact_ids(ids)  # no integer is free where both ends of int64 are taken
        other = own.new_full((len(extra),), len(query))
    columns, column_ids = torch.cat([key, extra]), torch.cat([own, other])
    lse, rank = similarity_lse_rank(query, columns, scale=scale, x_id=own, y_id=column_ids, threshold=threshold, op=op)
    if not weight:
        return lse, rank
    hard = scale * dot_rows(query, extra) + scalar(weight, query)
    if threshold is not None:
        rank = rank + (hard.detach() > threshold).to(torch.int32)
    return torch.logaddexp(lse, hard), rank


def both_directions(op, x, y, dot, scale, ids, threshold=None, smoothing: float = 0.0):
    """Losses (2, N) of x to y and of y to x from one sweep, the ranks of x's rows, and the sums of x's negatives."""
    own = arange_ids(x) if ids is None else ids
    row, column, rank = similarity_cross(x, y, scale=scale, x_id=own, y_id=own, threshold=threshold, op=op)
    losses = softplus(torch.stack([row, column]) - scale * dot)
    sums = _negative_sums(x, y, None, ids) if smoothing or threshold is not None else None
    if smoothing:
        theirs = _smoothed(losses[1], dot, _negative_sums(y, x, None, ids), scale, smoothing)
        losses = torch.stack([_smoothed(losses[0], dot, sums, scale, smoothing), theirs])
    return losses, rank, sums


def _symmetric(query, key, dot, scale, ids, threshold, smoothing, reduction):
    losses, rank, sums = both_directions("info_nce", query, key, dot, scale, ids, threshold, smoothing)
    loss = 0.5 * losses.sum() if reduction == "sum" else reduce_rows(losses, reduction)
    return loss if threshold is None else (loss, row_stats(losses[0], rank, dot, sums[0] / sums[1]))


class InfoNCELoss(nn.Module):
    """``info_nce`` as a module, with the arguments of info-nce-pytorch's ``InfoNCE`` first; rows are normalised here."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        reduction: str = "mean",
        negative_mode: str = "unpaired",
        *,
        symmetric: bool = False,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.temperature, self.reduction, self.negative_mode = temperature, reduction, negative_mode
        self.symmetric, self.label_smoothing = symmetric, label_smoothing

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        """query, positive_key (N, D), negative_keys None, (M, D) or (N, M, D) -> loss."""
        return info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            negative_mode=self.negative_mode,
            reduction=self.reduction,
            symmetric=self.symmetric,
            label_smoothing=self.label_smoothing,
        )
