"""InfoNCE (van den Oord et al. 2018, eq. 4), the loss of CPC, SimCSE, NNCLR and CLIP, on the similarity log-sum-exp.

    loss_i = -log exp(s_i+) / (exp(s_i+) + sum_j exp(s_ij)) = softplus(lse_i - s_i+),    s = <query, key> / temperature

s_i+ is the logit of query i with its own key. Ids leave this logit out of lse_i, and softplus brings it back: that way a small loss
keeps its digits, where the difference of two large numbers would lose them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

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
from fastssl.distributed import similarity_cross as of_all
from fastssl.distributed.ranks import join
from fastssl.ops.similarity_cross import similarity_cross

from .parts.arguments import enter, scalar, together
from .parts.dot_products import dot_rows, matmul, paired, unit_rows
from .parts.ids import arange_ids, compact_ids, row_ids
from .parts.negative_sums import Sums, extra_sums, negative_sums, smoothed, with_extra
from .parts.one_call import Defaults, info_nce_in_one_call
from .parts.reductions import check_reduction, lse_rank_of, positive_loss, reduce_rows, softplus
from .parts.row_stats import RowStats, rank_bar, row_stats
from .passages import Passages, check_passages, of_passages, passage_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks


def _paired_terms(
    query: Tensor, negative_keys: Tensor, scale: float | Tensor, threshold: Tensor | None
) -> tuple[Tensor, Tensor, Sums]:
    """Over each row's own negatives (N, M, D): lse, the rank of a threshold (N,), which is (0,) without one, and sums."""
    wide = accumulator_dtype(query)
    dots = matmul(negative_keys.to(wide), query.to(wide)[:, :, None])[:, :, 0]
    if threshold is None:
        rank = query.new_empty(0, dtype=torch.int32)
    else:
        rank = (dots * scale > threshold[:, None]).sum(1, dtype=torch.int32)
    return torch.logsumexp(dots * scale, 1), rank, (dots.sum(1), float(dots.shape[1]))


def _check_columns(op, query, negative_keys, negative_mode, hard_negative_keys, ids, symmetric) -> None:
    """Which negatives were given: of what shape, and none that exclude each other."""
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


def _check_numbers(op, query, temperature, label_smoothing, hard_negative_weight, **flags: bool) -> None:
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_number(op, "label_smoothing", label_smoothing, 0.0, 1.0)
    check_number(op, "hard_negative_weight", hard_negative_weight)
    for name, flag in flags.items():
        check_flag(op, name, flag)


def info_nce(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, temperature: float | Tensor = 0.1,
    reduction: str = "mean", negative_mode: str = "unpaired", *,
    normalize: bool = True, symmetric: bool = False, return_stats: bool = False,
    group: ProcessGroup | Ranks | None = None,
    ids: Tensor | None = None,
    hard_negative_keys: Tensor | None = None, hard_negative_weight: float = 0.0, label_smoothing: float = 0.0,
    target: Tensor | int | None = None, margin: float | None = None, relative_margin: float | None = None,
    spare_hard_negatives: bool = False, query_query: bool = False, doc_query: bool = False, doc_doc: bool | str = False,
) -> Tensor | tuple[Tensor, RowStats]:  # fmt: skip
    """InfoNCE (van den Oord et al. 2018, eq. 4) of N queries, each with its positive key, without the matrix of similarities.

    ``loss_i = -log exp(s_i+) / (exp(s_i+) + sum_j exp(s_ij))``, where ``s = <query, key> / temperature``, s_i+ belongs to the
    positive key of query i, and j runs over its negatives. The first six arguments are those of info-nce-pytorch's ``info_nce``.

    For text retrieval the second argument holds passages (M, D), of which row ``target[i]`` is the positive of query i and every
    other one a negative, as in FlagEmbedding, tevatron and ms-swift. The arguments from ``target`` on belong to this form; so does
    a second argument of N G rows. ``negative_keys``, ``hard_negative_keys``, ``symmetric`` and ``label_smoothing`` do not.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64.
        positive_key: (N, D), dtype and device of ``query``; key i belongs to query i. Or passages (M, D), see ``target``.
        negative_keys: None: the other rows' keys are the negatives. (M, D) with "unpaired": these are the negatives of every query,
            and the batch is not. (N, M, D) with "paired": row i has negatives of its own. Dtype and device of ``query``.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        reduction: "mean" or "sum" over the queries, or "none" for the losses (N,).
        negative_mode: "unpaired" or "paired".
        normalize: scale all rows to unit length first, so that similarities are cosines.
        symmetric: the mean of query to key and key to query (negatives from the batch only), both from one sweep; "none" gives
            the losses (2N,), those of the queries first.
        return_stats: also return ``RowStats`` of the queries.
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the keys of all its processes are
            negatives (negative keys and hard negatives too, unless "paired"). Each process gets its share: the mean of the
            shares, and of their gradients, is that of one process with the joined batch. None: this process's rows alone.
        ids: (N,) integers. Rows of equal id (captions of one picture, slices of one volume) are not each other's negatives. Of
            passages (M,): those with the id of a query's positive, such as its duplicates, are not negatives of the query.
        hard_negative_keys: (M, D), more negatives for every query beside the batch, as in supervised SimCSE.
        hard_negative_weight: added to the logit of query i with hard negative i (needs M = N); SimCSE's argument of this name.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``, over the positive and the row's negatives.
        target: the positive of each query among this process's passages: rows (N,), integers; or G, a whole number: row i G, and
            the G - 1 rows behind it are its hard negatives; None is G = M / N. Or (N, P), several positives of a query, with -1
            where there are fewer: the mean over them, of which none is a negative; the largest of them counts for the margin.
        margin: drops false negatives: passages that are more similar to query i than ``<q_i, p_target_i> + margin`` count neither
            in the loss nor in its gradient. It is in units of the similarity, before the temperature: Qwen3-Embedding and ms-swift
            have 0.1; a negative one drops more, -m being ``CachedGISTEmbedLoss``'s absolute m where the model guides itself.
        relative_margin: r adds ``r |<q_i, p_target_i>|`` to the margin; -0.05 keeps negatives of up to 95 % of the positive.
        spare_hard_negatives: the hard negatives of a query are kept whatever their similarity; only other passages are dropped.
        query_query: the other queries are negatives too, ``<q_i, q_k>``, and the margin drops them as it drops passages.
        doc_query: the other queries are negatives of the positive too, ``<p_target_i, q_k>``. No margin.
        doc_doc: the other passages are negatives of the positive too, ``<p_target_i, p_j>``: True, all but itself (ms-swift);
            "other", those of other queries (sentence-transformers). No margin.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``; with ``return_stats`` (loss, RowStats).
        Memory O((N + M) D); within a batch, and with ``symmetric``, as ``clip_loss``. Differentiable once. Where no key needs a
        gradient, none is computed, and the keys may be overwritten before the backward.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature, or arguments that exclude each other.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> query, key = torch.eye(4), torch.eye(4).roll(1, 1)
        >>> info_nce(query, query, temperature=1.0).item() < info_nce(query, key, temperature=1.0).item()
        True
        >>> loss, stats = info_nce(query, query, return_stats=True)
        >>> stats.acc1.item(), stats.rank.tolist()
        (1.0, [0, 0, 0, 0])
        >>> query, passages = torch.randn(8, 32), torch.randn(8 * 4, 32)  # of each query its positive and 3 hard negatives
        >>> info_nce(query, passages, temperature=0.02, margin=0.1, query_query=True).shape
        torch.Size([])
    """
    op = "info_nce"
    how = Passages(target, margin, relative_margin, spare_hard_negatives, query_query, doc_query, doc_doc)
    plain: Defaults = ((None, (negative_keys, hard_negative_keys, ids, group)), (0.0, (hard_negative_weight, label_smoothing)))
    plain += ((False, (return_stats, bool(how.given))), ("unpaired", (negative_mode,)))
    check_reduction(op, reduction)
    loss = info_nce_in_one_call(op, query, positive_key, temperature, normalize, symmetric, reduction, plain)
    if loss is not None:
        return loss
    query, positive_key, negative_keys, hard_negative_keys = enter(op, query, positive_key, negative_keys, hard_negative_keys)
    if of_passages(query, positive_key, how):
        others = (negative_keys, hard_negative_keys, symmetric, label_smoothing, hard_negative_weight)
        check_passages(op, query, positive_key, ids, how, others)
        return passage_loss(op, query, positive_key, temperature, reduction, ids, how, normalize, return_stats, group)
    check_views(op, ("query", "positive_key"), query, positive_key)
    flags = {"normalize": normalize, "symmetric": symmetric, "return_stats": return_stats}
    _check_numbers(op, query, temperature, label_smoothing, hard_negative_weight, **flags)
    _check_columns(op, query, negative_keys, negative_mode, hard_negative_keys, ids, symmetric)
    if hard_negative_weight and (hard_negative_keys is None or len(hard_negative_keys) != len(query) or ids is not None):
        raise ValueError(f"{op}: hard_negative_weight needs one hard negative for each query (M = N) and no ids")
    extra = negative_keys if hard_negative_keys is None else hard_negative_keys
    joined, of_extra = _joined(op, group, query, positive_key, negative_keys, negative_mode, extra, temperature)
    scale = 1.0 / scalar(temperature, query)
    query, key, dot = paired(op, query, positive_key, normalize)
    if extra is not None and normalize:
        extra = unit_rows(extra)
    threshold = rank_bar(query, key, scale) if return_stats else None
    if symmetric:
        return _symmetric(query, key, dot, scale, ids, threshold, label_smoothing, reduction, joined)
    sums: Sums | None = None
    needs_sums = return_stats or label_smoothing != 0
    if negative_keys is None:
        lse, rank = batch_lse(op, query, key, scale, extra, ids, hard_negative_weight, threshold, joined, of_extra)
        sums = with_extra(negative_sums(query, key, ids, joined), query, extra, of_extra) if needs_sums else None
    elif negative_mode == "paired":
        lse, rank, sums = _paired_terms(query, extra, scale, threshold)
    else:
        lse, rank = lse_rank_of(op, query, extra, of_extra, scale=scale, threshold=threshold)
        sums = extra_sums(query, extra, of_extra) if needs_sums else None
    if not needs_sums or sums is None:
        return positive_loss(op, lse, dot, scale, reduction, joined)
    if label_smoothing:
        rows = smoothed(softplus(lse - scale * dot), dot, sums, scale, label_smoothing, hard_negative_weight)
        loss = reduce_rows(rows, reduction, joined)
    else:
        rows = softplus((lse - scale * dot).detach())
        loss = positive_loss(op, lse, dot, scale, reduction, joined)
    return (loss, row_stats(rows, rank, dot, sums[0] / sums[1])) if return_stats else loss


def _joined(op, group, query, key, negative_keys, negative_mode, extra, temperature) -> tuple[Joined | None, Joined | None]:
    """The processes that bring queries and keys, and the same ones as they bring the extra keys, which may be of other numbers."""
    if group is None and negative_keys is not None:
        return None, None  # the batch is not contrasted, so that nothing is missing from other processes
    grad = f"{query.requires_grad} {key.requires_grad}"
    joined = together(op, group, query, temperature=temperature, extra=extra is not None, mode=negative_mode, grad=grad)
    if joined is None or extra is None or extra.dim() == 3:
        return joined, None
    return joined, join(op, group, extra, role="extra keys", grad=extra.requires_grad)


def batch_lse(
    op: str,
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    extra: Tensor | None = None,
    ids: Tensor | None = None,
    weight: float = 0.0,
    threshold: Tensor | None = None,
    joined: Joined | None = None,
    of_extra: Joined | None = None,
) -> tuple[Tensor, Tensor]:
    """lse (N,) over the batch's other keys and the extra ones (M, D), and the rank (N,) of a threshold.

    With a ``weight`` (then M = N) row i of ``extra`` is the hard negative of query i: the ids leave it out of the sweep, and it
    joins afterwards with the weight in its logit.
    """
    own = row_ids(query, joined) if ids is None else ids
    how: dict[str, Any] = {"scale": scale, "threshold": threshold}
    if extra is None:
        return lse_rank_of(op, query, key, joined, x_id=own, y_id=own, **how)
    if joined is not None:
        lse, rank = lse_rank_of(op, query, key, joined, x_id=own, y_id=own, **how)
        more, of_more = lse_rank_of(op, query, extra, of_extra, **({"x_id": own, "y_id": own} if weight else {}), **how)
        lse, rank = torch.logaddexp(lse, more), rank + of_more
    else:
        if weight:
            other = own
        elif ids is None:
            other = arange_ids(extra, start=len(query))
        else:
            own = compact_ids(ids)  # no integer is free where both ends of int64 are taken
            other = own.new_full((len(extra),), len(query))
        columns, column_ids = torch.cat([key, extra]), torch.cat([own, other])
        lse, rank = lse_rank_of(op, query, columns, x_id=own, y_id=column_ids, **how)
    if not weight:
        return lse, rank
    hard = scale * dot_rows(query, extra) + scalar(weight, query)
    if threshold is not None:
        rank = rank + (hard.detach() > threshold).to(torch.int32)
    return torch.logaddexp(lse, hard), rank


def both_directions(
    op: str,
    x: Tensor,
    y: Tensor,
    dot: Tensor,
    scale: float | Tensor,
    ids: Tensor | None,
    threshold: Tensor | None = None,
    smoothing: float = 0.0,
    joined: Joined | None = None,
) -> tuple[Tensor, Tensor, Sums | None]:
    """Losses (2, N) of x to y and of y to x from one sweep, the ranks of x's rows, and the sums of x's negatives."""
    own = row_ids(x, joined) if ids is None else ids
    how: dict[str, Any] = {"scale": scale, "x_id": own, "y_id": own, "threshold": threshold}
    row, column, rank = similarity_cross(x, y, op=op, **how) if joined is None else of_all.similarity_cross(joined, x, y, **how)
    losses = softplus(torch.stack([row, column]) - scale * dot)
    if not smoothing and threshold is None:
        return losses, rank, None
    sums = negative_sums(x, y, ids, joined)
    if smoothing:
        theirs = smoothed(losses[1], dot, negative_sums(y, x, ids, joined), scale, smoothing)
        losses = torch.stack([smoothed(losses[0], dot, sums, scale, smoothing), theirs])
    return losses, rank, sums


def _symmetric(query, key, dot, scale, ids, threshold, smoothing, reduction, joined) -> Tensor | tuple[Tensor, RowStats]:
    """The mean of both directions; with a threshold also the statistics of the queries."""
    losses, rank, sums = both_directions("info_nce", query, key, dot, scale, ids, threshold, smoothing, joined)
    loss = reduce_rows(0.5 * losses if reduction == "sum" else losses, reduction, joined)
    if threshold is None or sums is None:
        return loss
    return loss, row_stats(losses[0], rank, dot, sums[0] / sums[1])


class InfoNCELoss(nn.Module):
    """``info_nce`` as a module, with the arguments of info-nce-pytorch's ``InfoNCE`` first; rows are normalised here.

    Args:
        temperature: divides the similarities; a number, or a one-element float tensor such as a learned ``nn.Parameter``; not 0.
        reduction: "mean", "sum", or "none" for the losses (N,).
        negative_mode: "unpaired" or "paired": whether all queries share the negative keys.
        symmetric: the mean of query to key and key to query.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``.

    Examples:
        >>> criterion = InfoNCELoss(temperature=0.1)
        >>> query = torch.randn(8, 32, requires_grad=True)
        >>> criterion(query, query.detach()).backward()
        >>> criterion(query, torch.randn(8, 32), torch.randn(100, 32)).shape  # 100 negatives for every query
        torch.Size([])
    """

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
        """The loss of queries and their keys.

        Args:
            query: (N, D) float32, bfloat16, float16 or float64.
            positive_key: (N, D), dtype and device of ``query``.
            negative_keys: None (the other rows' keys), (M, D), or (N, M, D) with ``negative_mode="paired"``.

        Returns:
            The loss, float32 (float64 for float64 input): a scalar, or (N,) with ``reduction="none"``.

        Raises:
            TypeError, ValueError: as ``info_nce``.
        """
        loss = info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            negative_mode=self.negative_mode,
            reduction=self.reduction,
            symmetric=self.symmetric,
            label_smoothing=self.label_smoothing,
        )
        return cast(Tensor, loss)  # and no statistics, which were not asked for
