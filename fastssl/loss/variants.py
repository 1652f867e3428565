"""Ways to use the contrastive losses: nested dimensions (Matryoshka), and positives looked up in a bank (NNCLR)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastssl.checks import (
    FLOATS,
    check_data,
    check_dense,
    check_like,
    check_matrix,
    check_scalar,
    check_vector,
    is_whole,
    readable,
    widest,
)

from .parts.arguments import scalar
from .parts.dot_products import in_given_dtype

BLOCK_ELEMENTS = 1 << 22  # similarities held at once: 16 MiB of float32


def matryoshka(
    loss: Callable[..., Tensor], *embeddings: Tensor, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """Sum over d in ``dims`` of w_d loss(first d dimensions of each embedding) (Kusupati et al. 2022, eq. 1).

    Args:
        loss: called with the shortened embeddings, for example ``functools.partial(info_nce, temperature=0.05)``; it should
            normalise, since a part of a unit row is none.
        embeddings: (..., D) each, the arguments of ``loss``.
        dims: widths, each from 1 to D.
        weights: one for each width, 1 by default.

    The parts are views: nothing is copied but what the loss itself normalises.

    Raises:
        TypeError, ValueError: ``loss`` is no function, an embedding no tensor, dims or weights not as above; what ``loss`` raises.
    """
    op = "matryoshka"
    if not callable(loss):
        raise TypeError(f"{op}: loss must be a function, got {type(loss).__name__}")
    for k, embedding in enumerate(embeddings):
        check_dense(op, f"embeddings[{k}]", embedding, "a tensor (..., D)")
        if embedding.dtype not in FLOATS:
            raise TypeError(f"{op}: embeddings[{k}] must be float32, bfloat16, float16 or float64, got {embedding.dtype}")
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
    total = 0.0
    for d, weight in zip(dims, weights, strict=True):
        part = loss(*(e[..., :d] for e in embeddings))
        if not isinstance(part, Tensor):
            raise TypeError(f"{op}: loss must return a tensor, got {type(part).__name__}")
        total = total + scalar(weight, embeddings[0]) * part
    return total


def _check_excluded(op: str, exclude: Tensor, query: Tensor, bank_rows: int) -> None:
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
        query: (N, D) floating, of unit length for cosine similarity.
        bank: (K, D), dtype and device of ``query``.
        exclude: (N,) int64 rows of the bank that each query must not find, such as itself; -1 for none. A bank's only row cannot be
            excluded, since nothing would be left to find (on a GPU, where values are not looked at, it is found all the same).

    Returns:
        (N,) int64, the first one among equals; ``bank[nearest_neighbor(query, bank)]`` are the positives. No gradient. 2^22
        similarities are held at once, 16 MiB of float32, whatever N and K (one row of them where K is larger).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or rows to exclude that are not the bank's.
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
    """The same of a block of rows; ``similarity`` (N, K) is room for their products."""
    with in_given_dtype(query):
        similarity = torch.mm(query, bank.T, out=similarity)
    if exclude is not None:
        known = (exclude >= 0) & (exclude < len(bank))
        own = torch.where(known, exclude, 0)[:, None]
        similarity.scatter_(1, own, similarity.gather(1, own).masked_fill_(known[:, None], -torch.inf))
    return similarity.argmax(1)
