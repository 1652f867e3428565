"""InfoNCE of queries and passages, as embedding models for text retrieval are trained.

    s_ij = <q_i, p_j> / temperature         q (B, D) queries, p (M, D) passages, of which p_{t_i} is the positive of query i
    loss_i = -log(exp(s_i+) / (exp(s_i+) + sum of exp over the negatives of i)) = softplus(lse_i - s_i+),      s_i+ = s_{i, t_i}

The negatives of query i are the passages of another id than its positive, except those above the limit, and on request

    query_query     <q_i, q_k> / temperature         the queries of other positives, except those above the limit
    doc_query       <p_{t_i}, q_k> / temperature     the positive against the queries of other positives
    doc_doc         <p_{t_i}, p_j> / temperature     the positive against the passages of another id

A similarity above the limit <q_i, p_{t_i}> + margin + relative_margin |<q_i, p_{t_i}>| is taken for a false negative. The limit
is a constant of the loss. Each of the four sums is one log-sum-exp (``similarity_lse`` or ``similarity_limited``), and they are
joined by a log-sum-exp of at most five numbers a row. In several processes the columns are those of all of them.

A query may have several positives. Its loss is the mean of the above over them, none of them is a negative, and the largest
<q_i, p_{t_i}> makes the limit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastssl.checks import (
    INTEGERS,
    accumulator_dtype,
    as_python,
    check_choice,
    check_dense,
    check_flag,
    check_like,
    check_matrix,
    check_number,
    check_same_device,
    check_scalar,
    check_vector,
    check_whole,
    is_whole,
    readable,
)
from fastssl.distributed.ranks import join

from .parts.arguments import scalar, together
from .parts.dot_products import dot_rows, matmul, unit_rows
from .parts.ids import arange_ids, row_ids
from .parts.negative_sums import dot_sum, ids_to_sum_by, sums_by_id
from .parts.reductions import lse_of, lse_rank_of, positive_loss, reduce_rows, softplus
from .parts.row_stats import RowStats, rank_bar, row_stats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks


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
    positive: Tensor  # (B, D): of each query its passage; of several the most similar one
    dot: Tensor  # (B,): <query_i, positive_i>
    several: tuple[Tensor, Tensor] | None  # of several positives <query_i, passage> (B, P), and whether there is one, (B, P)
    own: Tensor  # (B,): the id of each query's positive
    ids: Tensor  # (M,): the ids of the passages
    at: Tensor | slice  # (B,): which passages these are
    group: int | None  # passages of each query, where they lie one query after the other
    of_queries: Joined | None  # the processes that compute the loss together, with their numbers of queries
    of_all: Joined | None  # the same ones, with their numbers of passages


def of_passages(query: Tensor, passages: Tensor, how: Passages) -> bool:
    """Whether the second argument of ``info_nce`` holds passages: an argument for them was given, or it has other rows."""
    tensors = all(isinstance(rows, Tensor) and not rows.is_nested for rows in (query, passages))
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
    if isinstance(how.target, Tensor) and how.target.dim() == 2:
        for name, given in (("ids", ids is not None), ("doc_query", how.doc_query), ("doc_doc", bool(how.doc_doc))):
            if given:
                raise ValueError(f"{op}: {name} cannot be given with several positives for a query")
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
        if target.dim() == 2:
            return _check_positives(op, query, most, target)
        check_vector(op, "target", target, rows, INTEGERS, "query", query)
        if readable(target) and not 0 <= int(target.min()) <= int(target.max()) < most:
            low, high = (int(t) for t in target.aminmax())
            raise ValueError(f"{op}: target must be rows of positive_key, from 0 to {most - 1}, got {low} to {high}")
    else:
        raise TypeError(f"{op}: target must be an integer tensor, a whole number or None, got {type(target).__name__}")


def _check_positives(op: str, query: Tensor, most: int, target: Tensor) -> None:
    """Several positives of each query, (N, P) with -1 where there are fewer; a passage belongs to one query."""
    wanted = f"(N,) or (N, P) with N = {len(query)}"
    check_dense(op, "target", target, "a tensor")
    if target.dtype not in INTEGERS:
        raise TypeError(f"{op}: target must have an integer dtype, got {target.dtype}")
    if target.shape[0] != len(query) or target.shape[1] == 0:
        raise ValueError(f"{op}: target must have shape {wanted}, got {tuple(target.shape)}")
    check_same_device(op, "target", target, "query", query)
    if not readable(target):
        return
    low, high = (int(t) for t in target.aminmax())
    if low < -1 or high >= most:
        raise ValueError(f"{op}: target must be rows of positive_key, from 0 to {most - 1}, or -1, got {low} to {high}")
    if not (target >= 0).any(1).all():
        raise ValueError(f"{op}: target must have a positive for each query, got a row of -1")
    found = target[target >= 0]
    if len(found.unique()) < len(found):
        raise ValueError(f"{op}: target must name a passage once, as one query's positive; give copies of it to several queries")


def _sides(
    query: Tensor,
    passages: Tensor,
    ids: Tensor | None,
    how: Passages,
    normalize: bool,
    of_queries: Joined | None,
    of_all: Joined | None,
) -> _Sides:
    if normalize:
        query, passages = unit_rows(query), unit_rows(passages)
    at: Tensor | slice
    if isinstance(how.target, Tensor) and how.target.dim() == 2:
        return _sides_of_several(query, passages, how.target.long(), of_queries, of_all)
    if isinstance(how.target, Tensor):
        at, count = how.target.long(), None
    else:
        count = len(passages) // len(query) if how.target is None else int(how.target)
        at = slice(0, len(query) * count, count)
    positive = passages[at]
    ids = row_ids(passages, of_all) if ids is None else ids
    return _Sides(query, passages, positive, dot_rows(query, positive), None, ids[at], ids, at, count, of_queries, of_all)


def _sides_of_several(query: Tensor, passages: Tensor, target: Tensor, of_queries: Joined | None, of_all: Joined | None) -> _Sides:
    """The id of a passage is the number of the query to which it belongs, or -1."""
    there, rows, wide = target >= 0, target.clamp_min(0), accumulator_dtype(query)
    dots = matmul(passages[rows].to(wide), query.to(wide)[:, :, None])[:, :, 0]
    with torch.no_grad():
        best = torch.where(there, dots, -math.inf).argmax(1, keepdim=True)
    at, own = rows.gather(1, best)[:, 0], row_ids(query, of_queries)
    places = torch.where(there, target, len(passages)).flatten()  # those that are not there write behind the last passage
    ids = own.new_full((len(passages) + 1,), -1).scatter(0, places, own[:, None].expand_as(target).flatten())[:-1]
    dot = dots.gather(1, best)[:, 0]
    return _Sides(query, passages, passages[at], dot, (dots, there), own, ids, at, None, of_queries, of_all)


def _limits(sides: _Sides, scale: float | Tensor, how: Passages) -> Tensor | None:
    """The logit (B,) above which a negative counts as false; None without margins. A passage that equals the positive may get
    another sum of the same products, so ``rank_bar`` stands in place of the positive's logit."""
    if not how.limited:
        return None
    with torch.no_grad():
        bar, dot = rank_bar(sides.query, sides.positive, scale), sides.dot
        size = scale.abs().to(bar.dtype) if isinstance(scale, Tensor) else abs(scale)
        margin, relative = (0.0 if m is None else scalar(m, sides.query) for m in (how.margin, how.relative_margin))
        return bar + size * (margin + relative * dot.abs())


def _groups(sides: _Sides, count: int) -> tuple[Tensor, Tensor]:
    """Ids that leave the passages of a query out of its row: of the queries (B,), and of the passages (M,), -1 where they are
    nobody's."""
    local = arange_ids(sides.passages) // count
    nobody = local >= len(sides.query)
    if sides.of_queries is not None:
        local = local + sides.of_queries.first.to(torch.int32)
    return row_ids(sides.query, sides.of_queries), torch.where(nobody, -1, local)


def _passage_terms(
    op: str, sides: _Sides, scale, limit: Tensor | None, threshold: Tensor | None, spare: bool
) -> tuple[list[Tensor], Tensor]:
    """The log-sum-exps over the passages, (B,) each, and the rank of a threshold. With ``spare`` a query's own hard negatives
    are left out of the sweep and come from products of their own."""
    query, passages = sides.query, sides.passages
    count = sides.group if spare and limit is not None else None
    x_id, y_id = (sides.own, sides.ids) if count is None else _groups(sides, count)
    how = {"scale": scale, "threshold": threshold, "limit": limit}
    lse, rank = lse_rank_of(op, query, passages, sides.of_all, x_id=x_id, y_id=y_id, **how)
    if count is None or count == 1:
        return [lse], rank
    rows, wide = len(query), accumulator_dtype(query)
    hard = passages[: rows * count].view(rows, count, -1)[:, 1:].to(wide)
    logits = scale * matmul(hard, query.to(wide)[:, :, None])[:, :, 0]
    if threshold is not None:
        rank = rank + (logits.detach() > threshold[:, None]).sum(1, dtype=torch.int32)
    return [lse, torch.logsumexp(logits, 1)], rank


def _more_terms(op: str, sides: _Sides, scale, limit: Tensor | None, how: Passages) -> list[Tensor]:
    """The log-sum-exps (B,) over the columns beside the passages."""
    query, passages, positive, own = sides.query, sides.passages, sides.positive, sides.own
    parts = []
    if how.query_query:
        parts.append(lse_of(op, query, query, sides.of_queries, scale=scale, x_id=own, y_id=own, limit=limit))
    if how.doc_query:
        parts.append(lse_of(op, positive, query, sides.of_queries, scale=scale, x_id=own, y_id=own))
    if how.doc_doc:
        count = sides.group if how.doc_doc == "other" else None
        x_id, y_id = (own, sides.ids) if count is None else _groups(sides, count)
        parts.append(lse_of(op, positive, passages, sides.of_all, scale=scale, x_id=x_id, y_id=y_id))
    return parts


def _joined(parts: list[Tensor]) -> Tensor:
    """log sum exp of log-sum-exps (B,). A part of no columns is -inf, and torch's derivative is NaN where all are."""
    if len(parts) == 1:
        return parts[0]
    return torch.logsumexp(torch.stack([torch.where(part == -math.inf, -1e30, part) for part in parts]), 0)


def _mean_negative(sides: _Sides) -> Tensor:
    """Mean similarity (B,) of each query with the passages of other ids."""
    wide, of_all = accumulator_dtype(sides.query), sides.of_all
    values = torch.cat([sides.passages.to(wide), torch.ones_like(sides.passages[:, :1], dtype=wide)], 1)
    sums = sums_by_id(values, ids_to_sum_by(sides.ids, of_all), of_all)[sides.at]
    total = dot_sum(sides.query, sides.passages, of_all) - dot_rows(sides.query.to(wide), sums[:, :-1])
    return total / ((len(sides.passages) if of_all is None else of_all.total) - sums[:, -1])


def _processes(
    op: str, group, query: Tensor, passages: Tensor, temperature, ids: Tensor | None, how: Passages
) -> tuple[Joined | None, Joined | None]:
    """The processes that bring queries, and the same ones as they bring passages, which are of other numbers."""
    grad = f"{query.requires_grad} {passages.requires_grad}"
    joined = together(op, group, query, temperature=temperature, ids=ids, grad=grad, **how._asdict())
    return joined, None if joined is None else join(op, group, passages, role="passages")


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
    group: ProcessGroup | Ranks | None,
) -> Tensor | tuple[Tensor, RowStats]:
    """The loss at the top of this file. ``check_passages`` has seen the arguments but for the temperature and the last three."""
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_flag(op, "normalize", normalize)
    check_flag(op, "return_stats", return_stats)
    of_queries, of_all = _processes(op, group, query, passages, temperature, ids, how)
    scale = 1.0 / scalar(temperature, query)
    sides = _sides(query, passages, ids, how, normalize, of_queries, of_all)
    limit = _limits(sides, scale, how)
    threshold = rank_bar(sides.query, sides.positive, scale) if return_stats else None
    parts, rank = _passage_terms(op, sides, scale, limit, threshold, how.spare_hard_negatives)
    lse = _joined([*parts, *_more_terms(op, sides, scale, limit, how)])
    if sides.several is None:
        rows, loss = None, positive_loss(op, lse, sides.dot, scale, reduction, of_queries)
    else:
        dots, there = sides.several
        rows = torch.where(there, softplus(lse[:, None] - scale * dots), 0.0).sum(1) / there.sum(1)
        loss = reduce_rows(rows, reduction, of_queries)
    if not return_stats:
        return loss
    with torch.no_grad():
        rows = softplus(lse - scale * sides.dot) if rows is None else rows
        return loss, row_stats(rows, rank, sides.dot, _mean_negative(sides))
