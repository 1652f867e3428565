"""Losses over given or sampled negatives: N-pair, noise contrastive estimation, negative sampling.

nce and negative_sampling are logistic regressions of one positive and M negatives of each query,

    L_i = softplus(-u_i+) + sum_k softplus(u_ik),    u = <query, key> / temperature + offset

The negatives come as (M, D), shared by all queries; as (N, M, D), each query's own; or as a bank (K, D) with an index (N, M) of its
rows. Those are gathered for a block of queries at a time, and gathered again in the backward, so that (N, M, D) is never there at
once.
"""

import math

import torch
from torch import Tensor, nn

from fastssl.checks import (
    FLOATS,
    accumulator_dtype,
    check_dense,
    check_float_dtype,
    check_like,
    check_matrix,
    check_number,
    check_same_device,
    check_scalar,
    check_views,
    savable,
)

from .parts.arguments import enter, scalar
from .parts.dot_products import dot_rows, matmul
from .parts.ids import arange_ids, check_index
from .parts.local_rows import warn_local_rows
from .parts.reductions import check_reduction, log_of, lse_of, reduce_rows, softplus
from .parts.row_blocks import map_rows


def n_pair(anchor: Tensor, positive: Tensor, l2_reg: float = 0.0, *, reduction: str = "mean") -> Tensor:
    """Multi-class N-pair loss (Sohn 2016): row i's negatives are the positives of the other rows, each of a class of its own.

    ``L_i = log(1 + sum_{j != i} exp(<a_i, p_j> - <a_i, p_i>)) + l2_reg (|a_i|^2 + |p_i|^2) / 4``

    Equals pytorch-metric-learning's ``NPairsLoss`` without normalisation. For a temperature, or unit rows, see ``info_nce``.

    Args:
        anchor: (N, D) float32, bfloat16, float16 or float64, used as given.
        positive: (N, D), dtype and device of ``anchor``; row i is the positive of row i.
        l2_reg: weight of the squared norms, at least 0.
        reduction: "mean" or "sum" over the rows, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``; 0 for one row. Memory O(N D).
        Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, l2_reg or reduction.

    Examples:
        >>> n_pair(torch.eye(3), torch.zeros(3, 3)).item() == torch.tensor(3.0).log().item()  # all products are 0
        True
    """
    op = "n_pair"
    anchor, positive = enter(op, anchor, positive)
    check_reduction(op, reduction)
    check_views(op, ("anchor", "positive"), anchor, positive)
    check_number(op, "l2_reg", l2_reg, 0.0)
    warn_local_rows(op)
    ids = arange_ids(anchor)
    lse = lse_of(op, anchor, positive, x_id=ids, y_id=ids)
    loss = softplus(lse - dot_rows(anchor, positive))
    if l2_reg > 0.0:
        loss = loss + 0.25 * scalar(l2_reg, anchor) * (dot_rows(anchor, anchor) + dot_rows(positive, positive))
    return reduce_rows(loss, reduction)


def _check_negatives(op: str, name: str, keys: Tensor, index_name: str, index: Tensor | None, query: Tensor) -> int:
    """Checks keys (M, D), (N, M, D), or (K, D) with an index (N, M), and returns M."""
    n, width = query.shape
    shapes = f"(M, D), (N, M, D), or (K, D) with {index_name}"
    check_dense(op, name, keys, f"a tensor {shapes}")
    check_float_dtype(op, name, keys)
    own = keys.dim() == 3 and index is None
    if not (own or keys.dim() == 2) or 0 in keys.shape or keys.shape[-1] != width or (own and keys.shape[0] != n):
        raise ValueError(f"{op}: {name} must be {shapes}, with N = {n} and D = {width}, got shape {tuple(keys.shape)}")
    check_like(op, name, keys, "query", query)
    if index is None:
        return keys.shape[-2]
    check_index(op, index_name, index, 2, name, len(keys), query)
    return index.shape[1]


def _check_float(op: str, name: str, value, shape: tuple[int, ...], query: Tensor) -> None:
    """A float tensor of a given shape on the device of query."""
    check_dense(op, name, value, "a float tensor of shape {}", shape)
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be a float tensor of shape {shape}, got {value.dtype}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(value.shape)}")
    check_same_device(op, name, value, "query", query)


def _check_query(op: str, query: Tensor, positive_key: Tensor, temperature, reduction: str) -> None:
    check_reduction(op, reduction)
    check_views(op, ("query", "positive_key"), query, positive_key)
    check_scalar(op, "temperature", temperature, query, zero=False)


def _map_logits(f, query: Tensor, keys: Tensor, index: Tensor | None, scale, offset=None) -> Tensor:
    """f(u) (n,) for blocks of n queries, where u (n, M) = scale <query, negatives> + offset.

    The offset is (M,), (N, M), a scalar or None. Every tensor is an argument of the block: those with an entry for each query are
    split, the others are shared.
    """
    offset_by_row = isinstance(offset, Tensor) and offset.dim() == 2
    named = {"query": query, "keys": keys, "index": savable(index), "scale": scale, "offset": offset}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    by_row = {"query"} | ({"keys"} if keys.dim() == 3 else {"index"}) | ({"offset"} if offset_by_row else set())
    names = sorted(tensors, key=lambda name: name not in by_row)  # those that are split come first

    def block(*parts):
        part = named | dict(zip(names, parts, strict=True))
        q, own, at, shift = part["query"], part["keys"], part["index"], part["offset"]
        if at is not None:
            own = own.index_select(0, at.reshape(-1).long()).view(*at.shape, -1)
        q, own = q.to(accumulator_dtype(q)), own.to(accumulator_dtype(own))
        dots = matmul(q, own.mT) if own.dim() == 2 else matmul(own, q[:, :, None])[:, :, 0]
        u = part["scale"] * dots
        return (f(u if shift is None else u + shift),)

    negatives = keys.shape[-2] if index is None else index.shape[1]
    width = negatives if keys.dim() == 2 and index is None else negatives * keys.shape[-1]
    rows, shared = ([tensors[name] for name in names if (name in by_row) == row] for row in (True, False))
    return map_rows(block, tuple(rows), tuple(shared), width, few=index is not None and keys.requires_grad)[0]


def _sum_softplus(u: Tensor) -> Tensor:
    return softplus(u).sum(1)


def _log_noise(op: str, n, log_noise_pos, log_noise_neg, noise_keys, noise_index, query, count) -> tuple:
    """Log-probabilities of the positive and of the noise samples under the noise distribution, checked."""
    given = [k for k, v in {"n": n, "log_noise_pos": log_noise_pos, "log_noise_neg": log_noise_neg}.items() if v is not None]
    if given not in (["n"], ["log_noise_pos", "log_noise_neg"]):
        got = " and ".join(given) or "neither"
        raise ValueError(f"{op}: the noise must be n (uniform over n items) or log_noise_pos and log_noise_neg, got {got}")
    if n is not None:
        check_number(op, "n", n, 1)
        return -math.log(n), -math.log(n)
    shared = noise_keys.dim() == 2 and noise_index is None
    _check_float(op, "log_noise_pos", log_noise_pos, (query.shape[0],), query)
    _check_float(op, "log_noise_neg", log_noise_neg, (count,) if shared else (query.shape[0], count), query)
    wide = accumulator_dtype(query)
    return log_noise_pos.to(wide), log_noise_neg.to(wide)


def nce(
    query: Tensor,
    positive_key: Tensor,
    noise_keys: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    n: int | None = None,
    log_noise_pos: Tensor | None = None,
    log_noise_neg: Tensor | None = None,
    noise_index: Tensor | None = None,
    log_z: float | Tensor = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Noise contrastive estimation (Gutmann & Hyvarinen 2010; Mnih & Kavukcuoglu 2013), as instance discrimination uses it.

    With ``P(k|q) = exp(<q, k> / temperature) / Z`` and M noise samples from Pn, h = P / (P + M Pn) (Wu et al. 2018, eq. 5-7):

    ``L_i = -log h(i's positive) - sum_k log(1 - h(k))``

    It is computed from the logits ``<q, k> / temperature - log Z - log(M Pn(k))``, so that no probability under- or overflows.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64, used as given (instance discrimination: unit rows).
        positive_key: (N, D), same dtype and device; with a memory bank ``bank[i]``.
        noise_keys: (M, D) shared by all queries, (N, M, D) where each query has its own, or with ``noise_index`` the bank (K, D).
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        n: uniform noise over n items, Pn = 1 / n; n is the size of the data set. Given instead of the next two.
        log_noise_pos: (N,) float, log Pn of the positives. Given together with ``log_noise_neg``.
        log_noise_neg: float, log Pn of the noise samples: (M,) for shared noise_keys, otherwise (N, M). They are not
            normalised here.
        noise_index: (N, M) integers, rows of the bank; the (N, M, D) keys are then never stored as a whole.
        log_z: log of the constant Z, a number or a one-element float tensor: 0 as in Mnih & Kavukcuoglu, ``nce_log_z`` of the
            first batch as in Wu et al.
        reduction: "mean" or "sum" over the queries, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``, summed over the M noise samples.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, noise, log_z or reduction.

    Examples:
        >>> bank = torch.nn.functional.normalize(torch.randn(1000, 16), dim=1)  # one row for each picture of the data set
        >>> noise = torch.randint(1000, (4, 64))
        >>> log_z = nce_log_z(bank[:4], bank, n=1000, noise_index=noise)
        >>> nce(bank[:4], bank[:4], bank, n=1000, noise_index=noise, log_z=log_z).shape
        torch.Size([])
    """
    op = "nce"
    query, positive_key, noise_keys = enter(op, query, positive_key, noise_keys)
    _check_query(op, query, positive_key, temperature, reduction)
    count = _check_negatives(op, "noise_keys", noise_keys, "noise_index", noise_index, query)
    check_scalar(op, "log_z", log_z, query)
    log_pos, log_neg = _log_noise(op, n, log_noise_pos, log_noise_neg, noise_keys, noise_index, query, count)
    scale = 1.0 / scalar(temperature, query)
    shift = scalar(log_z, query) + log_of(count, query)
    positive = softplus(shift + log_pos - scale * dot_rows(query, positive_key))
    return reduce_rows(positive + _map_logits(_sum_softplus, query, noise_keys, noise_index, scale, -shift - log_neg), reduction)


@torch.no_grad()
def nce_log_z(
    query: Tensor, noise_keys: Tensor, temperature: float | Tensor = 0.07, *, n: int, noise_index: Tensor | None = None
) -> Tensor:
    """The ``log_z`` that ``nce`` takes, estimated from uniform noise (Wu et al. 2018, eq. 8).

    ``log_z = log(n mean_ik exp(<q_i, k> / temperature))``, the mean over the queries i and their noise keys k. Instance
    discrimination estimates it from the first batch and keeps it for the whole training.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64, used as given.
        noise_keys: (M, D) shared by all queries, (N, M, D) where each query has its own, or with ``noise_index`` the bank (K, D).
        temperature: divides the similarities; a number or a one-element float tensor, not 0.
        n: number of items that the noise is drawn from, the size of the data set.
        noise_index: (N, M) integers, rows of the bank.

    Returns:
        A scalar, float32 (float64 for float64 input), without gradient.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature or n.

    Examples:
        >>> log_z = nce_log_z(torch.zeros(2, 4), torch.randn(8, 4), n=100)  # exp(0) = 1 for every pair, so Z = 100
        >>> round(log_z.exp().item(), 3)
        100.0
    """
    op = "nce_log_z"
    query, noise_keys = enter(op, query, noise_keys)
    check_matrix(op, "query", query, "N, D")
    count = _check_negatives(op, "noise_keys", noise_keys, "noise_index", noise_index, query)
    check_scalar(op, "temperature", temperature, query, zero=False)
    check_number(op, "n", n, 1)
    rows = _map_logits(lambda u: torch.logsumexp(u, 1), query, noise_keys, noise_index, 1.0 / scalar(temperature, query))
    return torch.logsumexp(rows, 0) + (log_of(n, rows) - log_of(count, rows) - log_of(query.shape[0], rows))


def negative_sampling(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    negative_index: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative sampling, the loss of word2vec's skip-gram (Mikolov et al. 2013, "Distributed representations", eq. 4).

    ``L_i = -log sigmoid(<q_i, k_i+> / temperature) - sum_k log sigmoid(-<q_i, k> / temperature)``; the paper has no temperature.

    Args:
        query: (N, D) float32, bfloat16, float16 or float64, used as given.
        positive_key: (N, D), same dtype and device; row i is the positive of query i.
        negative_keys: (M, D) shared by all queries, (N, M, D) where each query has its own, or with ``negative_index`` the table
            (K, D).
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        negative_index: (N, M) integers, rows of the table; the (N, M, D) keys are then never stored as a whole.
        reduction: "mean" or "sum" over the queries, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``, summed over the M negatives.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature or reduction.

    Examples:
        >>> words = torch.randn(1000, 16, requires_grad=True)  # a table of embeddings
        >>> loss = negative_sampling(words[:4], words[4:8], words, negative_index=torch.randint(1000, (4, 5)))
        >>> loss.backward()
        >>> words.grad.shape
        torch.Size([1000, 16])
    """
    op = "negative_sampling"
    query, positive_key, negative_keys = enter(op, query, positive_key, negative_keys)
    _check_query(op, query, positive_key, temperature, reduction)
    _check_negatives(op, "negative_keys", negative_keys, "negative_index", negative_index, query)
    scale = 1.0 / scalar(temperature, query)
    positive = softplus(-scale * dot_rows(query, positive_key))
    return reduce_rows(positive + _map_logits(_sum_softplus, query, negative_keys, negative_index, scale), reduction)


class NPairLoss(nn.Module):
    """``n_pair`` as a module: ``NPairLoss(l2_reg)(anchor, positive)``.

    Args:
        l2_reg: weight of the squared norms, at least 0.

    Examples:
        >>> NPairLoss(l2_reg=0.02)(torch.randn(8, 16), torch.randn(8, 16)).shape
        torch.Size([])
    """

    def __init__(self, l2_reg: float = 0.0):
        super().__init__()
        self.l2_reg = l2_reg

    def forward(self, anchor: Tensor, positive: Tensor) -> Tensor:
        """The mean loss of anchors and positives (N, D); errors as ``n_pair``."""
        return n_pair(anchor, positive, self.l2_reg)
