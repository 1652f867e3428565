"""InfoNCE of queries and passages, as embedding models for text retrieval are trained.

    s_ij = <q_i, p_j> / temperature         q (B, D) queries, p (M, D) passages, of which p_{t_i} is the positive of query i
    loss_i = -log(exp(s_i+) / (exp(s_i+) + sum of exp over the negatives of i)) = softplus(lse_i - s_i+),      s_i+ = s_{i, t_i}

The negatives of query i are the passages of another id than its positive, except those above the limit, and on request

    query_query     <q_i, q_k> / temperature         the queries of other positives, except those above the limit
    doc_query       <p_{t_i}, q_k> / temperature     the positive against the queries of other positives
    doc_doc         <p_{t_i}, p_j> / temperature     the positive against the passages of another id

A similarity above the limit <q_i, p_{t_i}> + margin + relative_margin |<q_i, p_{t_i}>| is taken for a false negative. The limit
is a constant of the loss. Each of the four sums is one log-sum-exp (``similarity_lse`` or ``similarity_limited``), and they are
joined by a log-sum-exp of at most five numbers a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import (
    INTEGERS,
    accumulator_dtype,
    as_python,
    check_choice,
    check_flag,
    check_like,
    check_matrix,
    check_number,
    check_scalar,
    check_vector,
    check_whole,
    is_whole,
    readable,
)
from fastssl.ops.similarity import similarity_lse_rank
from fastssl.ops.similarity_limited import similarity_limited

from .parts.arguments import scalar
from .parts.dot_products import dot_rows, matmul, unit_rows
from .parts.ids import arange_ids, class_sums, compact_ids
from .parts.local_rows import warn_local_rows
from .parts.negative_sums import dot_sum
from .parts.reductions import positive_loss, softplus
from .parts.row_stats import RowStats, rank_bar, row_stats


class Passages(NamedTuple):
    """The arguments with which ``info_nce`` takes its second argument for passages; each is explained there."""

    target: Tensor | int | None = None
    margin: float | None = None
    relative_margin: float | None = None
    spare_hard_negatives: bool = False
    query_query: bool = False
    doc_query: bool = False
    doc_doc: bool | str = False

    @property
    def given(self) -> list[str]:
        """The names of the arguments that are not at their defaults."""
        return [name for name, value in self._asdict().items() if value is not None and value is not False]

    @property
    def limited(self) -> bool:
        return self.margin is not None or self.relative_margin is not None


class _Sides(NamedTuple):
    """Queries and passages as the sweeps see them, and the ids that leave the positive and its duplicates out."""

    query: Tensor  # (B, D)
    passages: Tensor  # (M, D)
    positive: Tensor  # (B, D): of each query its passage
    dot: Tensor  # (B,): <query_i, positive_i>
    own: Tensor  # (B,): the id of each query's positive
    ids: Tensor  # (M,): the ids of the passages
    group: int | None  # passages of each query, where they lie one query after the other


def of_passages(query: Tensor, passages: Tensor, how: Passages) -> bool:
    """Whether the second argument of ``info_nce`` holds passages: an argument for them was given, or it has other rows."""
    tensors = isinstance(query, Tensor) and isinstance(passages, Tensor)
    return bool(how.given) or (tensors and query.dim() == passages.dim() == 2 and len(query) != len(passages) and len(query) > 0)


def _refuse_others(op: str, how: Passages, others: tuple) -> None:
    """Arguments of the other form of ``info_nce`` must be at their defaults."""
    names = ("negative_keys", "hard_negative_keys", "symmetric", "label_smoothing", "hard_negative_weight")
    for name, value in zip(names, others, strict=True):
        if isinstance(value, Tensor) or (value is not None and value != 0):
            reason = f"{how.given[0]} was given" if how.given else "positive_key has more rows than query"
            raise ValueError(f"{op}: {name} is not for passages, and positive_key is taken for passages because {reason}")


def check_passages(op: str, query: Tensor, passages: Tensor, ids: Tensor | None, how: Passages, others: tuple) -> None:
    """Everything about these arguments that can be wrong; the values of ``target`` are looked at on the CPU only. ``others`` are
    negative_keys, hard_negative_keys, symmetric, label_smoothing and hard_negative_weight."""
    check_matrix(op, "query", query, "N, D")
    check_matrix(op, "positive_key", passages, "M, D")
    check_like(op, "positive_key", passages, "query", query)
    shapes = f"got {tuple(query.shape)} and {tuple(passages.shape)}"
    if query.shape[1] != passages.shape[1]:
        raise ValueError(f"{op}: query and positive_key must have the same width D, {shapes}")
    _refuse_others(op, how, others)
    for name in ("margin", "relative_margin"):
        if (value := getattr(how, name)) is not None:
            check_number(op, name, value)
    for name in ("spare_hard_negatives", "query_query", "doc_query"):
        check_flag(op, name, getattr(how, name))
    check_choice(op, "doc_doc", as_python(how.doc_doc), (False, True, "other"))
    if ids is not None:
        check_vector(op, "ids", ids, len(passages), INTEGERS, "positive_key", passages)
    _check_target(op, query, passages, how.target, shapes)
    for name, given in (("spare_hard_negatives", how.spare_hard_negatives), ('doc_doc="other"', how.doc_doc == "other")):
        if given and (ids is not None or isinstance(how.target, Tensor)):
            other = "a target tensor" if ids is None else "ids"
            raise ValueError(f"{op}: {name} needs passages that lie one query after the other, so it cannot be given with {other}")


def _check_target(op: str, query: Tensor, passages: Tensor, target: Tensor | int | None, shapes: str) -> None:
    rows, most = len(query), len(passages)
    if target is None:
        if most % rows:
            raise ValueError(
                f"{op}: query and positive_key must have the same shape (N, D), or positive_key a multiple of N rows, the "
                f"passages of each query behind each other; or target must say which row is the positive of each query; {shapes}"
            )
    elif is_whole(target):
        check_whole(op, "target", target, 1)
        if rows * int(target) > most:
            raise ValueError(f"{op}: target={target} passages for each of {rows} queries need {rows * int(target)}, got {most}")
    elif isinstance(target, Tensor):
        check_vector(op, "target", target, rows, INTEGERS, "query", query)
        if readable(target) and not 0 <= int(target.min()) <= int(target.max()) < most:
            low, high = (int(t) for t in target.aminmax())
            raise ValueError(f"{op}: target must be rows of positive_key, from 0 to {most - 1}, got {low} to {high}")
    else:
        raise TypeError(f"{op}: target must be an integer tensor, a whole number or None, got {type(target).__name__}")


def _sides(query: Tensor, passages: Tensor, ids: Tensor | None, normalize: bool, target: Tensor | int | None) -> _Sides:
    if normalize:
        query, passages = unit_rows(query), unit_rows(passages)
    rows, group = len(query), None
    if isinstance(target, Tensor):
        at = target.long()
        positive = passages[at]
        own = at.to(torch.int32) if ids is None else ids[at]
    else:
        group = len(passages) // rows if target is None else int(target)
        positive = passages[: rows * group : group]
        own = (arange_ids(passages) if ids is None else ids)[: rows * group : group]
    return _Sides(query, passages, positive, dot_rows(query, positive), own, arange_ids(passages) if ids is None else ids, group)


def _limits(sides: _Sides, scale: float | Tensor, how: Passages) -> Tensor | None:
    """The logit (B,) above which a negative counts as false; None without margins. A passage that equals the positive may get
    another sum of the same products, so ``rank_bar`` stands in place of the positive's logit."""
    if not how.limited:
        return None
    with torch.no_grad():
        bar, dot = rank_bar(sides.query, sides.positive, scale), sides.dot
        size = scale.abs().to(bar.dtype) if isinstance(scale, Tensor) else abs(scale)
        return bar + size * (float(how.margin or 0.0) + float(how.relative_margin or 0.0) * dot.abs())


def _lse(
    op: str, x: Tensor, y: Tensor, x_id: Tensor, y_id: Tensor, scale, limit: Tensor | None, threshold: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if limit is None:
        return similarity_lse_rank(x, y, scale=scale, x_id=x_id, y_id=y_id, threshold=threshold, op=op)
    return similarity_limited(x, y, limit, scale=scale, x_id=x_id, y_id=y_id, threshold=threshold, op=op)


def _groups(sides: _Sides, count: int) -> tuple[Tensor, Tensor]:
    """Ids that leave the passages of a query out of its row: of the queries (B,), and of the passages (M,)."""
    return arange_ids(sides.query), arange_ids(sides.passages) // count


def _passage_terms(
    op: str, sides: _Sides, scale, limit: Tensor | None, threshold: Tensor | None, spare: bool
) -> tuple[list[Tensor], Tensor]:
    """The log-sum-exps over the passages, (B,) each, and the rank of a threshold. With ``spare`` a query's own hard negatives
    are left out of the sweep and come from products of their own."""
    if not spare or sides.group is None or limit is None:
        lse, rank = _lse(op, sides.query, sides.passages, sides.own, sides.ids, scale, limit, threshold)
        return [lse], rank
    rows, group = len(sides.query), sides.group
    lse, rank = _lse(op, sides.query, sides.passages, *_groups(sides, group), scale, limit, threshold)
    if group == 1:
        return [lse], rank
    wide = accumulator_dtype(sides.query)
    hard = sides.passages[: rows * group].view(rows, group, -1)[:, 1:].to(wide)
    logits = scale * matmul(hard, sides.query.to(wide)[:, :, None])[:, :, 0]
    if threshold is not None:
        rank = rank + (logits.detach() > threshold[:, None]).sum(1, dtype=torch.int32)
    return [lse, torch.logsumexp(logits, 1)], rank


def _more_terms(op: str, sides: _Sides, scale, limit: Tensor | None, how: Passages) -> list[Tensor]:
    """The log-sum-exps (B,) over the columns beside the passages."""
    query, passages, positive, _, own, ids, group = sides
    parts = []
    if how.query_query:
        parts.append(_lse(op, query, query, own, own, scale, limit)[0])
    if how.doc_query:
        parts.append(_lse(op, positive, query, own, own, scale, None)[0])
    if how.doc_doc:
        apart = _groups(sides, group) if how.doc_doc == "other" and group is not None else (own, ids)
        parts.append(_lse(op, positive, passages, *apart, scale, None)[0])
    return parts


def _joined(parts: list[Tensor]) -> Tensor:
    """log sum exp of log-sum-exps (B,). A part of no columns is -inf, and torch's derivative is NaN where all are."""
    if len(parts) == 1:
        return parts[0]
    return torch.logsumexp(torch.stack([torch.where(part == -math.inf, -1e30, part) for part in parts]), 0)


def _mean_negative(sides: _Sides) -> Tensor:
    """Mean similarity (B,) of each query with the passages of other ids."""
    wide = accumulator_dtype(sides.query)
    every = torch.cat([sides.ids, sides.own])
    compact = compact_ids(every)
    ids, own = compact[: len(sides.ids)], compact[len(sides.ids) :]
    values = torch.cat([sides.passages.to(wide), torch.ones_like(sides.passages[:, :1], dtype=wide)], 1)
    sums = class_sums(values, ids)[own]
    total = dot_sum(sides.query, sides.passages) - dot_rows(sides.query.to(wide), sums[:, :-1])
    return total / (len(sides.passages) - sums[:, -1])


def passage_loss(
    op: str,
    query: Tensor,  # (B, D)
    passages: Tensor,  # (M, D)
    temperature: float | Tensor,
    reduction: str,
    ids: Tensor | None,  # (M,)
    how: Passages,
    normalize: bool,
    return_stats: bool,
) -> Tensor | tuple[Tensor, RowStats]:
    """The loss at the top of this file; ``check_passages`` has seen the arguments but for the last two and the temperature."""
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_flag(op, "normalize", normalize)
    check_flag(op, "return_stats", return_stats)
    warn_local_rows(op)
    scale = 1.0 / scalar(temperature, query)
    sides = _sides(query, passages, ids, normalize, how.target)
    limit = _limits(sides, scale, how)
    threshold = rank_bar(sides.query, sides.positive, scale) if return_stats else None
    parts, rank = _passage_terms(op, sides, scale, limit, threshold, how.spare_hard_negatives)
    lse = _joined([*parts, *_more_terms(op, sides, scale, limit, how)])
    loss = positive_loss(op, lse, sides.dot, scale, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        return loss, row_stats(softplus(lse - scale * sides.dot), rank, sides.dot, _mean_negative(sides))
