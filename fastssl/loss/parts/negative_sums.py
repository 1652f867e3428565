"""Sums over the similarities of each row's negatives, without the similarities: they are linear in the keys.

    sum_j <query_i, key_j> over the negatives = <query_i, sum of all keys> - <query_i, sum of the keys that are none>

They serve label smoothing and the mean similarity in the statistics of a loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.distributed.class_sums import class_sums_of_all, sum_of_all

from .arguments import scalar
from .dot_products import dot_rows
from .ids import class_sums, compact_ids

if TYPE_CHECKING:
    from fastssl.distributed.ranks import Joined

Sums = tuple[Tensor, Tensor | float]  # the sums (N,), and how many similarities they are


def dot_sum(rows: Tensor, keys: Tensor, joined: Joined | None = None) -> Tensor:
    """sum_j <rows_i, keys_j> of rows (N, D) and the keys (M, D) of all processes: (N,) in ``accumulator_dtype``; O((N + M) D)."""
    wide = accumulator_dtype(rows)
    total = keys.sum(0, dtype=wide)
    return (rows.to(wide) * (total if joined is None else sum_of_all(joined, total))).sum(1)


def ids_to_sum_by(ids: Tensor, joined: Joined | None = None) -> Tensor:
    """What ``sums_by_id`` takes for integers (N,): in one process ``compact_ids``, in several the integers themselves."""
    return compact_ids(ids) if joined is None else ids


def sums_by_id(values: Tensor, ids: Tensor, joined: Joined | None = None) -> Tensor:
    """Sums (N, C) of the values (N, C) that have the id of each row, over all processes; ids (N,) of ``ids_to_sum_by``."""
    return class_sums(values, ids)[ids] if joined is None else class_sums_of_all(joined, values, ids)


def _excluded_sums(query: Tensor, keys: Tensor, ids: Tensor | None, joined: Joined | None) -> Sums:
    """Sum over j of <query_i, keys_j> with id_j = id_i (without ids of the positive alone), and how many those are."""
    if ids is None:
        return dot_rows(query, keys), 1.0
    wide, ids = accumulator_dtype(keys), ids_to_sum_by(ids, joined)
    ones = torch.ones(len(ids), 1, dtype=wide, device=keys.device)
    return dot_rows(query.to(wide), sums_by_id(keys.to(wide), ids, joined)), sums_by_id(ones, ids, joined)[:, 0]


def negative_sums(query: Tensor, keys: Tensor, ids: Tensor | None, joined: Joined | None = None) -> Sums:
    """Sums over the negatives of each row in the batch, or in the batches of all processes."""
    excluded, count = _excluded_sums(query, keys, ids, joined)
    every = len(keys) if joined is None else joined.total
    return dot_sum(query, keys, joined) - excluded, every - count


def extra_sums(query: Tensor, extra: Tensor, joined: Joined | None = None) -> Sums:
    """Sums over extra (M, D), those of all processes, which are negatives of every row."""
    return dot_sum(query, extra, joined), float(len(extra)) if joined is None else joined.total


def with_extra(sums: Sums, query: Tensor, extra: Tensor | None, joined: Joined | None = None) -> Sums:
    """The sums with those over extra (M, D), where there are extra negatives."""
    if extra is None:
        return sums
    more, count = extra_sums(query, extra, joined)
    return sums[0] + more, sums[1] + count


def smoothed(
    loss: Tensor, positive: Tensor, negatives: Sums, scale: float | Tensor, smoothing: float, weight: float = 0.0
) -> Tensor:
    """Cross-entropy with label smoothing from the plain one: + eps (s_pos - mean of all logits of the row).

    ``weight`` is what the logits of the negatives hold, in all, beside the scaled similarities.
    """
    total, count = negatives
    eps, extra = scalar(smoothing, loss), scalar(weight, loss) / (count + 1.0)
    return loss + eps * (scale * (positive - (positive + total) / (count + 1.0)) - extra)
