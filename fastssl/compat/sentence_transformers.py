"""Methods for the losses of sentence-transformers (6.2) with in-batch negatives, which need no matrix of similarities.

    MultipleNegativesRankingLoss.compute_loss_from_embeddings = compute_loss_from_embeddings
    CachedMultipleNegativesRankingLoss.calculate_loss = calculate_loss           fastssl.patch("sentence_transformers")

The symmetric losses derive from these two. With s = scale <q_i, d_j> of rows at unit length (``cos_sim``) or as they are
(``dot_score``), d_i the positive of query i:

    joint            log(c e^{s_ii} + e^{lse}) - s_ii        lse over the negatives of all directions; c = 2 with "doc_to_query",
                                                             whose denominator holds the positive a second time, else 1
    per_direction    the mean over directions of log(e^{s_ii} + e^{lse of the direction}) - s_ii

``hardness_mode`` adds strength * <q_i, d_j>, taken as a constant, to the logits of some negatives. A sweep at scale + strength has
these logits, and its gradient is multiplied by scale / (scale + strength).
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from fastssl.checks import check_number, check_views
from fastssl.distributed import gather_rows_with_grad
from fastssl.loss.parts.arguments import enter
from fastssl.loss.parts.dot_products import dot_rows, unit_rows
from fastssl.loss.parts.ids import arange_ids
from fastssl.loss.parts.reductions import lse_of, softplus

__all__ = ["calculate_loss", "compute_loss_from_embeddings"]

_OP = "compute_loss_from_embeddings"
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
    """The loss of queries and their documents.

    Args:
        self: the loss, whose ``scale``, ``similarity_fct`` (their ``cos_sim`` or ``dot_score``), ``gather_across_devices``,
            ``directions``, ``partition_mode``, ``hardness_mode`` and ``hardness_strength`` are read.
        embeddings: queries, positives, and any number of hard negatives, (B, D) each, row i of all belonging together. With
            ``gather_across_devices`` as many rows in every process; the gradient goes through the gather.
        labels: not read, as there.

    Returns:
        The mean loss over this process's queries, a scalar, float32 (float64 for float64 input). Memory O(M D) for M documents.

    Raises:
        NotImplementedError: another ``similarity_fct``; after ``fastssl.patch`` the library's own code runs then.
        TypeError, ValueError: wrong type, dtype, shape or device.

    Examples:
        >>> def cos_sim(a, b): ...  # in place of the library's function
        >>> cos_sim.__module__ = "sentence_transformers.util"
        >>> options = {"gather_across_devices": False, "directions": ("query_to_doc",), "partition_mode": "joint"}
        >>> options |= {"scale": 20.0, "similarity_fct": cos_sim, "hardness_mode": None, "hardness_strength": 0.0}
        >>> theirs = SimpleNamespace(**options)  # their module, as it is read
        >>> embeddings = [torch.randn(4, 8, requires_grad=True) for _ in range(3)]
        >>> compute_loss_from_embeddings(theirs, embeddings, None).backward()
        >>> embeddings[2].grad.shape
        torch.Size([4, 8])
    """
    _check(self, embeddings)
    options = SimpleNamespace(scale=float(self.scale), strength=float(self.hardness_strength), mode=self.hardness_mode)
    rows = enter(_OP, *embeddings)
    if _name(self) == "cos_sim":
        rows = tuple(unit_rows(part) for part in rows)
    first = 0
    everyone = list(rows)
    if self.gather_across_devices:
        gathered = [gather_rows_with_grad(part) for part in rows]
        everyone, first = [part for part, _ in gathered], gathered[0][1]
    queries, docs = everyone[0], torch.cat(everyone[1:])
    mine = arange_ids(rows[0], first)
    query_ids = arange_ids(queries)
    positive = options.scale * dot_rows(rows[0], rows[1])
    denominators = [_query_to_doc(options, rows, docs, mine, len(queries))]
    if "query_to_query" in self.directions:
        denominators.append(lse_of(_OP, rows[0], queries, scale=options.scale, x_id=mine, y_id=query_ids))
    if "doc_to_query" in self.directions:
        denominators.append(lse_of(_OP, rows[1], queries, scale=options.scale, x_id=mine, y_id=query_ids))
    if "doc_to_doc" in self.directions:
        samples = query_ids.repeat(len(rows) - 1)
        denominators.append(lse_of(_OP, rows[1], docs, scale=options.scale, x_id=mine, y_id=samples))
    lse = torch.stack(denominators)
    if self.partition_mode == "per_direction":
        return softplus(lse - positive).mean()
    twice = math.log(2.0) if "doc_to_query" in self.directions else 0.0
    return (softplus(lse.logsumexp(0) - positive - twice) + twice).mean()


def calculate_loss(self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False) -> Tensor:
    """``compute_loss_from_embeddings`` of embeddings in mini-batches, at once: nothing N x M is made that wants chunks.

    Args:
        self: the cached loss; ``self.loss`` holds the options.
        reps: queries, positives, and hard negatives, each a list of (b, D).
        labels: not read, as there.
        with_backward: also run the backward down to ``reps``, and return the loss detached.

    Returns:
        The mean loss over this process's queries, a scalar, float32 (float64 for float64 input).

    Raises:
        NotImplementedError, TypeError, ValueError: as ``compute_loss_from_embeddings``.

    Examples:
        >>> def dot_score(a, b): ...  # in place of the library's function
        >>> dot_score.__module__ = "sentence_transformers.util"
        >>> options = {"gather_across_devices": False, "directions": ("query_to_doc",), "partition_mode": "joint"}
        >>> options |= {"scale": 1.0, "similarity_fct": dot_score, "hardness_mode": None, "hardness_strength": 0.0}
        >>> theirs = SimpleNamespace(loss=SimpleNamespace(**options))
        >>> reps = [[torch.randn(2, 8, requires_grad=True) for _ in range(2)] for _ in range(2)]
        >>> calculate_loss(theirs, reps, with_backward=True).requires_grad, reps[0][1].grad.shape
        (False, torch.Size([2, 8]))
    """
    loss = compute_loss_from_embeddings(self.loss, [torch.cat(parts) for parts in reps], labels)
    if not with_backward:
        return loss
    loss.backward()
    return loss.detach()


def _name(loss) -> str:
    return getattr(loss.similarity_fct, "__name__", "")


def _check(loss, embeddings: list[Tensor]) -> None:
    theirs = str(getattr(loss.similarity_fct, "__module__", "")).startswith("sentence_transformers.")
    if not theirs or _name(loss) not in ("cos_sim", "dot_score"):
        wanted = "cos_sim or dot_score of sentence_transformers.util"
        raise NotImplementedError(f"{_OP}: similarity_fct must be {wanted}, got {loss.similarity_fct!r}")
    if len(embeddings) < 2:
        raise ValueError(f"{_OP}: embeddings must hold queries and documents, got {len(embeddings)}")
    for k, part in enumerate(embeddings[1:], 1):
        check_views(_OP, ("embeddings[0]", f"embeddings[{k}]"), embeddings[0], part)
    check_number(_OP, "scale", loss.scale)
    check_number(_OP, "hardness_strength", loss.hardness_strength, 0.0)
    if loss.hardness_mode not in HARDNESS or not set(loss.directions) <= set(DIRECTIONS):
        raise NotImplementedError(f"{_OP}: hardness_mode {loss.hardness_mode!r} or directions {loss.directions!r} are not known")


def _query_to_doc(options, rows: tuple[Tensor, ...], docs: Tensor, mine: Tensor, samples: int) -> Tensor:
    """lse (B,) over the negatives of each query among all documents (K samples, D), which lie kind after kind."""
    hard = options.mode if options.strength > 0 else None
    scale, strength, columns = options.scale, options.strength, arange_ids(docs)
    if hard in (None, "all_negatives"):
        return _penalised(rows[0], docs, scale, strength if hard else 0.0, mine, columns)
    others = _penalised(rows[0], docs, scale, strength if hard == "in_batch_negatives" else 0.0, mine, columns % samples)
    own = [dot_rows(rows[0], negatives) for negatives in rows[2:]]
    own = [scale * dot + (strength * dot.detach() if hard == "hard_negatives" else 0.0) for dot in own]
    return torch.stack([others, *own]).logsumexp(0)


def _penalised(query: Tensor, docs: Tensor, scale: float, strength: float, mine: Tensor, ids: Tensor) -> Tensor:
    """lse of (scale + strength) <q, d>, with the gradient of scale alone."""
    lse = lse_of(_OP, query, docs, scale=scale + strength, x_id=mine, y_id=ids)
    if strength == 0:
        return lse
    value = lse.detach()
    return torch.where(value == -torch.inf, value, value + (lse - value) * (scale / (scale + strength)))
