"""Ways to use the contrastive losses: nested dimensions (Matryoshka), and positives looked up in a bank (NNCLR)."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from fastssl.checks import (
    check_data,
    check_dense,
    check_float_dtype,
    check_like,
    check_matrix,
    check_scalar,
    check_vector,
    is_whole,
    readable,
    widest,
)
from fastssl.distributed.neighbours import BLOCK_ELEMENTS

from .parts.arguments import scalar
from .parts.dot_products import in_given_dtype


def matryoshka(
    loss: Callable[..., Tensor], *embeddings: Tensor, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """A loss over nested embeddings: the weighted sum of the loss of their first d dimensions (Kusupati et al. 2022, eq. 1).

    ``sum over d in dims of w_d loss(first d dimensions of each embedding)``. The parts are views: nothing is copied but what the
    loss itself normalises.

    Args:
        loss: called with the shortened embeddings, for example ``functools.partial(info_nce, temperature=0.05)``; returns a tensor.
            It should normalise, because a part of a unit row has another length.
        embeddings: (..., D) each, float32, bfloat16, float16 or float64: the arguments of ``loss``.
        dims: widths, whole numbers from 1 to D, at least one.
        weights: w_d, one number or one-element float tensor for each width; 1 by default.

    Returns:
        The sum, of the shape and dtype that ``loss`` returns.

    Raises:
        TypeError: ``loss`` is no function or returns no tensor, an embedding is no float tensor, or dims or weights are no
            sequences.
        ValueError: dims out of range, or another number of weights than of dims; and whatever ``loss`` raises.

    Examples:
        >>> from fastssl.functional import nt_xent
        >>> z0, z1 = torch.randn(8, 64, requires_grad=True), torch.randn(8, 64)
        >>> loss = matryoshka(nt_xent, z0, z1, dims=(16, 32, 64))
        >>> torch.allclose(loss, nt_xent(z0[:, :16], z1[:, :16]) + nt_xent(z0[:, :32], z1[:, :32]) + nt_xent(z0, z1))
        True
    """
    op = "matryoshka"
    if not callable(loss):
        raise TypeError(f"{op}: loss must be a function, got {type(loss).__name__}")
    for k, embedding in enumerate(embeddings):
        check_dense(op, f"embeddings[{k}]", embedding, "a tensor (..., D)")
        check_float_dtype(op, f"embeddings[{k}]", embedding)
        check_data(op, f"embeddings[{k}]", embedding, "embeddings[0]", embeddings[0])
    for name, value in (("dims", dims), ("weights", weights)):
        if not (isinstance(value, Sequence) or (value is None and name == "weights")) or isinstance(value, str):
            raise TypeError(f"{op}: {name} must be a sequence of numbers, got {type(value).__name__}")
    width = min([e.shape[-1] if e.dim() else 0 for e in embeddings]) if embeddings else 0
    if not embeddings or not dims or not all(is_whole(d) and 1 <= d <= width for d in dims):
        raise ValueError(f"{op}: dims must be whole numbers from 1 to D = {width}, at least one, got {list(dims)}")
    weights = [1.0] * len(dims) if weights is None else weights
    if len(weights) != len(dims):
        raise ValueError(f"{op}: weights must have one number for each of the {len(dims)} dims, got {len(weights)}")
    for k, weight in enumerate(weights):
        check_scalar(op, f"weights[{k}]", weight, embeddings[0])
    total: Tensor | float = 0.0
    for d, weight in zip(dims, weights, strict=True):
        part = loss(*(e[..., :d] for e in embeddings))
        if not isinstance(part, Tensor):
            raise TypeError(f"{op}: loss must return a tensor, got {type(part).__name__}")
        total = total + scalar(weight, embeddings[0]) * part
    return cast(Tensor, total)  # dims has at least one width


def _check_excluded(op: str, exclude: Tensor, query: Tensor, bank_rows: int) -> None:
    """(N,) int64, rows of the bank or -1; the values are looked at on the CPU only."""
    check_vector(op, "exclude", exclude, len(query), (torch.int64,), "query", query)
    if readable(exclude):
        low, high = (int(t) for t in exclude.aminmax())
        if low < -1 or high >= bank_rows:
            raise ValueError(f"{op}: exclude must be rows of bank, from 0 to {bank_rows - 1}, or -1, got {low} to {high}")
        if bank_rows == 1 and high == 0:
            raise ValueError(f"{op}: exclude must leave a row of bank to each query, got the only row of a bank of 1")


@torch.no_grad()
def nearest_neighbor(query: Tensor, bank: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """Index of the bank row most similar to each query: NNCLR's lookup of positives (Dwibedi et al. 2021, eq. 1).

    Args:
        query: (N, D) float32, bfloat16, float16 or float64; of unit length for cosine similarity.
        bank: (K, D), dtype and device of ``query``.
        exclude: (N,) int64, the row of the bank that each query must not find, such as itself; -1 for none. A bank's only row
            cannot be excluded, since nothing would be left to find (on a GPU, where values are not looked at, it is found all the
            same).

    Returns:
        (N,) int64, the first one among equals; ``bank[nearest_neighbor(query, bank)]`` are the positives. No gradient. 2^22
        similarities are held at once, 16 MiB of float32, whatever N and K (one row of them where K is larger).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or rows to exclude that are not the bank's.

    Examples:
        >>> bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> nearest_neighbor(bank, bank).tolist(), nearest_neighbor(bank, bank, exclude=torch.arange(3)).tolist()
        ([0, 1, 2], [1, 0, 1])
    """
    op = "nearest_neighbor"
    query, bank = widest(query, bank)
    check_matrix(op, "query", query, "N, D")
    check_matrix(op, "bank", bank, "K, D")
    check_like(op, "bank", bank, "query", query)
    if query.shape[1] != bank.shape[1]:
        raise ValueError(f"{op}: query and bank must have the same width D, got {tuple(query.shape)} and {tuple(bank.shape)}")
    if exclude is not None:
        _check_excluded(op, exclude, query, len(bank))
    rows = max(1, BLOCK_ELEMENTS // len(bank))
    if rows >= len(query):
        return _nearest(query, bank, exclude, None)
    found = torch.empty(len(query), dtype=torch.int64, device=query.device)
    similarity = torch.empty(rows, len(bank), dtype=query.dtype, device=query.device)  # one buffer: freed ones would pile up
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        found[part] = _nearest(query[part], bank, None if exclude is None else exclude[part], similarity[: len(query) - start])
    return found


def _nearest(query: Tensor, bank: Tensor, exclude: Tensor | None, similarity: Tensor | None) -> Tensor:
    """``nearest_neighbor`` of a block of rows; ``similarity`` (N, K) is room for their products, or None."""
    with in_given_dtype(query):
        similarity = torch.mm(query, bank.T, out=similarity)
    if exclude is not None:
        known = (exclude >= 0) & (exclude < len(bank))
        own = torch.where(known, exclude, 0)[:, None]
        similarity.scatter_(1, own, similarity.gather(1, own).masked_fill_(known[:, None], -torch.inf))
    return similarity.argmax(1)
