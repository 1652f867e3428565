"""What the drop-ins for retrieval trainers share: the cross-entropy of queries over passages, and their gather.

loss_i = -log softmax_j(scale <q_i, p_j>)_{t_i} = softplus(lse_{j != t_i} - s_{i, t_i})       q (N, D), p (M, D), target t (N,)
"""

import torch
from torch import Tensor

from fastssl.checks import INTEGERS, check_choice, check_matrix, check_scalar, check_vector
from fastssl.distributed import gather_rows, world_size
from fastssl.loss.parts.arguments import enter, scalar
from fastssl.loss.parts.dot_products import dot_rows
from fastssl.loss.parts.ids import arange_ids
from fastssl.loss.parts.reductions import lse_of, reduce_rows, softplus

REDUCTIONS = ("mean", "sum", "none")


def check_sides(op: str, query: Tensor, passages: Tensor, names: tuple[str, str]) -> None:
    """Raises TypeError or ValueError unless both are matrices of one width, dtype and device."""
    check_matrix(op, names[0], query, "N, D")
    check_matrix(op, names[1], passages, "M, D")
    if query.shape[1] != passages.shape[1] or query.dtype != passages.dtype or query.device != passages.device:
        got = " and ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (query, passages))
        raise ValueError(f"{op}: {names[0]} and {names[1]} must have one width, dtype and device, got {got}")


def stride_of(op: str, query: Tensor, passages: Tensor, names: tuple[str, str]) -> int:
    """M // N, the number of passages of each query, the first of which is its positive."""
    if len(passages) < len(query):
        raise ValueError(f"{op}: {names[1]} must have a row for each of {len(query)} rows of {names[0]}, got {len(passages)}")
    return len(passages) // len(query)


def cross_entropy(
    op: str,
    query: Tensor,
    passages: Tensor,
    scale: float | Tensor = 1.0,
    target: Tensor | None = None,
    reduction: str = "mean",
    names: tuple[str, str] = ("query", "passages"),
) -> Tensor:
    """Cross-entropy of each query (N, D) over all passages (M, D); ``target`` (N,) is by default i (M // N)."""
    query, passages = enter(op, query, passages)
    check_sides(op, query, passages, names)
    check_scalar(op, "scale", scale, query)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    if target is None:
        target = arange_ids(query) * stride_of(op, query, passages, names)
    else:
        check_vector(op, "target", target, len(query), INTEGERS, names[0], query)
    scale = scalar(scale, query)
    lse = lse_of(op, query, passages, scale=scale, x_id=target, y_id=arange_ids(passages))
    return reduce_rows(softplus(lse - scale * dot_rows(query, passages[target])), reduction)


def gather_own(rows: Tensor, *, even: bool = True) -> Tensor:
    """The rows of all processes in rank order, of which only this process's own carry a gradient; with ``even`` as many in each."""
    if world_size() == 1:
        return rows
    rank = torch.distributed.get_rank()
    counts = None if even else gather_rows(torch.tensor([len(rows)], device=rows.device), even=True)[:rank]
    everyone, first = gather_rows(rows, even=even), rank * len(rows) if counts is None else int(counts.sum())
    return torch.cat([everyone[:first], rows, everyone[first + len(rows) :]])
