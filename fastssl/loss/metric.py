"""Metric-learning losses over pairs and triplets: contrastive, triplet, lifted structure.

The distance d is "euclidean" |x - y|, "squared" |x - y|^2, or "cosine" 1 - <x, y> / (|x| |y|). Its gradient at d = 0 is 0, not
NaN. Rows are used as given; normalise them first where unit rows are wanted. The forms over a labelled batch take every ordered
pair or triplet of the batch, and hold the distances of a block of rows at a time. A batch without a valid pair or triplet gives 0
with gradient 0.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_choice, check_dense, check_flag, check_number, check_vector, check_views

from .parts.arguments import enter, scalar
from .parts.distances import DISTANCES, check_labelled, distance_rows, map_labelled, masked_lse, row_distance
from .parts.local_rows import warn_local_rows
from .parts.reductions import check_reduction, reduce_rows, softplus

_BATCH = ("nonzero", "mean", "sum")


def contrastive(a: Tensor, b: Tensor, label: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """Contrastive loss of given pairs (Chopra et al. 2005; Hadsell, Chopra & LeCun 2006, eq. 4).

    ``L_i = y_i d_i^2 / 2 + (1 - y_i) max(0, margin - d_i)^2 / 2``, d_i = |a_i - b_i|. The halves are the paper's; its Y is 1 - y.

    Args:
        a: (N, D) float32, bfloat16, float16 or float64.
        b: (N, D), dtype and device of ``a``; row i of both is a pair.
        label: (N,) bool or integers; a pair whose label is not 0 is of one class.
        margin: at least 0; pairs of two classes that are farther apart than this cost nothing.
        reduction: "mean" or "sum" over the pairs, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, margin or reduction.

    Examples:
        >>> a, b = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.5]])  # 5 and 0.5 apart
        >>> contrastive(a, b, torch.tensor([1, 0]), reduction="none").tolist()
        [12.5, 0.125]
    """
    op = "contrastive"
    a, b = enter(op, a, b)
    check_reduction(op, reduction)
    check_views(op, ("a", "b"), a, b)
    check_dense(op, "label", label, "a tensor of shape ({},)", a.shape[0])
    check_vector(op, "label", label, a.shape[0], (torch.bool, *INTEGERS), "a", a)
    check_number(op, "margin", margin, 0.0)
    d = row_distance(distance_rows(a, "euclidean"), distance_rows(b, "euclidean"), "euclidean")
    gap = scalar(margin, a) - d
    return reduce_rows(0.5 * torch.where(label.to(torch.bool), d, gap.relu()).square(), reduction)


def contrastive_pairs(
    features: Tensor,
    labels: Tensor,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    *,
    distance: str = "euclidean",
    reduction: str = "nonzero",
) -> Tensor:
    """Hinges on the distances of all pairs of a labelled batch, not squared: pytorch-metric-learning's ``ContrastiveLoss``.

    ``mean over pairs of one class of max(0, d - pos_margin) + mean over pairs of two classes of max(0, neg_margin - d)``

    Args:
        features: (N, D) float32, bfloat16, float16 or float64.
        labels: (N,) integers.
        pos_margin: at least 0; pairs of one class that are closer than this cost nothing.
        neg_margin: at least 0; pairs of two classes that are farther apart than this cost nothing. With "cosine" both margins are 1
            minus pytorch-metric-learning's, which are similarities.
        distance: "euclidean", "squared" or "cosine".
        reduction: of each of the two terms: "nonzero", the mean over the pairs whose hinge is above 0 (pytorch-metric-learning's
            default); "mean" over all pairs of the term; "sum" over its ordered pairs.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, margin, distance or reduction.

    Examples:
        >>> features = torch.tensor([[0.0], [2.0], [2.5]])
        >>> contrastive_pairs(features, torch.tensor([0, 0, 1])).item()  # 2 apart in one class, 0.5 apart in two
        2.5
    """
    op = "contrastive_pairs"
    (features,) = enter(op, features)
    check_choice(op, "reduction", reduction, _BATCH)
    check_labelled(op, features, labels, distance)
    check_number(op, "pos_margin", pos_margin, 0.0)
    check_number(op, "neg_margin", neg_margin, 0.0)
    warn_local_rows(op)
    pos, neg = scalar(pos_margin, features), scalar(neg_margin, features)

    def rows(d, same, other):
        hinges = (torch.where(same, d - pos, 0.0).relu(), torch.where(other, neg - d, 0.0).relu())
        return tuple(t for h, mask in zip(hinges, (same, other), strict=True) for t in (h.sum(1), (h > 0).sum(1), mask.sum(1)))

    near, near_active, near_valid, far, far_active, far_valid = map_labelled(rows, features, labels, distance)
    return _reduce_batch(near, near_active, near_valid, reduction) + _reduce_batch(far, far_active, far_valid, reduction)


def _reduce_batch(total: Tensor, active: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """The loss of the sums of each row, its number of terms above 0 and its number of terms; 0 where there is no term."""
    if reduction == "sum":
        return total.sum()
    return total.sum() / (active if reduction == "nonzero" else valid).sum().clamp(min=1)


def _margin(op: str, margin: float | None, soft: bool, like: Tensor) -> float | Tensor:
    check_flag(op, "soft", soft)
    if margin is None:
        return 0.0 if soft else 1.0
    check_number(op, "margin", margin, 0.0)
    return scalar(margin, like)


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | None = None,
    *,
    distance: str = "euclidean",
    soft: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Triplet loss of given triplets (Schroff et al. 2015, eq. 2, there with "squared"; soft: Hermans et al. 2017).

    ``L_i = max(0, d(a_i, p_i) - d(a_i, n_i) + margin)``; with ``soft``, ``log(1 + exp(d(a_i, p_i) - d(a_i, n_i) + margin))``.
    The default is ``torch.nn.functional.triplet_margin_loss`` without its eps inside the norm.

    Args:
        anchor: (N, D) float32, bfloat16, float16 or float64.
        positive: (N, D), dtype and device of ``anchor``.
        negative: (N, D), dtype and device of ``anchor``.
        margin: at least 0, in units of the distance. None: 1 for the hinge and 0 for the soft form, as in the papers.
        distance: "euclidean", "squared" or "cosine".
        soft: softplus instead of the hinge.
        reduction: "mean" or "sum" over the triplets, or "none" for the losses (N,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, margin, distance or reduction.

    Examples:
        >>> anchor, positive, negative = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
        >>> triplet(anchor, positive, negative, margin=1.0).item()  # 5 - 2 + 1
        4.0
    """
    op = "triplet"
    anchor, positive, negative = enter(op, anchor, positive, negative)
    check_reduction(op, reduction)
    check_choice(op, "distance", distance, DISTANCES)
    check_views(op, ("anchor", "positive"), anchor, positive)
    check_views(op, ("anchor", "negative"), anchor, negative)
    width = _margin(op, margin, soft, anchor)
    a, p, n = (distance_rows(t, distance) for t in (anchor, positive, negative))
    violation = row_distance(a, p, distance) - row_distance(a, n, distance) + width
    return reduce_rows(softplus(violation) if soft else violation.relu(), reduction)


def _hinge_rows(d: Tensor, same: Tensor, other: Tensor, margin: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over (p, n) of max(0, d_p - d_n + margin), number of triplets above 0, number of triplets: (n,) each.

    It takes O(N log N) for each anchor.

    The sum is linear in d between kinks: sum_j w_j d_j + margin * active, w_p = #{n: d_n < d_p + margin} for a positive and
    w_n = -#{p: d_n < d_p + margin} for a negative, both counted in sorted rows.
    """
    now = d.detach()
    reach = now + margin
    below = torch.searchsorted(now.masked_fill(~other, math.inf).sort(1).values, reach)
    above = same.sum(1, keepdim=True) - torch.searchsorted(reach.masked_fill(~same, math.inf).sort(1).values, now, right=True)
    below, above = below * same, above * (other & (now != math.inf))  # what is masked with inf would count as reached from inf
    active, weight = below.sum(1), below - above
    used = weight != 0
    # The weights sum to 0, so any constant may go: of the distances that count, the mean cancels least.
    center = torch.where(used, now, 0.0).sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp_min(1)
    total = (torch.where(used, d - center, 0.0) * weight).sum(1) + margin * active.to(d.dtype)
    return total, active, same.sum(1) * other.sum(1)


def _soft_rows(d: Tensor, same: Tensor, other: Tensor, margin: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of ``_hinge_rows`` with softplus, over N x N terms for each anchor; all of them are above 0."""
    terms = softplus(d[:, :, None] - d[:, None, :] + margin)
    total = torch.where(same[:, :, None] & other[:, None, :], terms, 0.0).sum((1, 2))
    valid = same.sum(1) * other.sum(1)
    return total, valid, valid


def _hard_rows(d: Tensor, same: Tensor, other: Tensor, margin: float | Tensor, soft: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of ``_hinge_rows`` over one triplet of each anchor: its farthest positive and its nearest negative."""
    valid = same.any(1) & other.any(1)
    farthest, nearest = d.masked_fill(~same, -math.inf).amax(1), d.masked_fill(~other, math.inf).amin(1)
    violation = torch.where(valid, farthest - nearest, 0.0) + margin
    loss = torch.where(valid, softplus(violation) if soft else violation.relu(), 0.0)
    return loss, loss > 0, valid


def triplet_batch(
    features: Tensor,
    labels: Tensor,
    margin: float | None = None,
    *,
    mining: str = "all",
    distance: str = "euclidean",
    soft: bool = False,
    reduction: str = "nonzero",
) -> Tensor:
    """Triplet loss over a labelled batch (Hermans, Beyer & Leibe 2017): batch-all or batch-hard.

    The terms are those of ``triplet``. "all": every (anchor, positive, negative) of the batch. "hard": for each anchor its farthest
    positive and its nearest negative; an anchor without a positive or without a negative is left out.

    Args:
        features: (N, D) float32, bfloat16, float16 or float64.
        labels: (N,) integers.
        margin: at least 0, in units of the distance. None: 1 for the hinge and 0 for the soft form.
        mining: "all" or "hard".
        distance: "euclidean", "squared" or "cosine".
        soft: softplus instead of the hinge.
        reduction: "nonzero", the mean over the terms above 0 (all of them when soft); "mean" over all; or "sum". The paper's
            batch-hard is "mean"; pytorch-metric-learning's default is "nonzero" for both.

    Returns:
        A scalar, float32 (float64 for float64 input). Batch-all by hinge sorts each anchor's distances, which takes O(N^2 log N)
        time, and never makes the N^3 triplets; the soft form takes O(N^3) time, a few anchors at once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, margin, mining, distance or reduction.

    Examples:
        >>> features, labels = torch.tensor([[0.0], [2.0], [2.5]]), torch.tensor([0, 0, 1])
        >>> triplet_batch(features, labels, margin=1.0, mining="hard").item()  # mean of 2 - 2.5 + 1 and 2 - 0.5 + 1
        1.5
    """
    op = "triplet_batch"
    (features,) = enter(op, features)
    check_choice(op, "mining", mining, ("all", "hard"))
    check_choice(op, "reduction", reduction, _BATCH)
    check_labelled(op, features, labels, distance)
    width = _margin(op, margin, soft, features)
    warn_local_rows(op)

    def rows(d, same, other):
        if mining == "hard":
            return _hard_rows(d, same, other, width, soft)
        return (_soft_rows if soft else _hinge_rows)(d, same, other, width)

    total, active, valid = map_labelled(rows, features, labels, distance, cubic=soft and mining == "all")
    return _reduce_batch(total, active, valid, reduction)


def lifted_structured(features: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Lifted structured loss (Oh Song et al. 2016, eq. 4: the smooth upper bound), d = |x_i - x_j|.

    ``L = 1 / (2 |P|) sum_{(i, j) in P} max(0, J_ij)^2``, P the pairs of one class,
    ``J_ij = log(sum_{k of another class than i} exp(margin - d_ik) + sum_{l of another than j} exp(margin - d_jl)) + d_ij``

    Equals pytorch-metric-learning's ``LiftedStructureLoss(neg_margin=margin, pos_margin=0)``.

    Args:
        features: (N, D) float32, bfloat16, float16 or float64.
        labels: (N,) integers. Without a pair of one class, or with one class only, the loss is 0.
        margin: at least 0, in units of the distance.

    Returns:
        A scalar, float32 (float64 for float64 input). It takes two sweeps over the distances, because J_ij needs each row's
        log-sum-exp first.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or margin.

    Examples:
        >>> features = torch.tensor([[0.0], [1.0], [9.0]])
        >>> lifted_structured(features, torch.tensor([0, 0, 1])).item()  # the other class is far away
        0.0
    """
    op = "lifted_structured"
    (features,) = enter(op, features)
    check_labelled(op, features, labels, "euclidean")
    check_number(op, "margin", margin, 0.0)
    warn_local_rows(op)
    width = scalar(margin, features)

    def negatives(d, same, other):
        return masked_lse(width - d, other)

    lse, has = map_labelled(negatives, features, labels, "euclidean")

    def positives(d, same, other, row_lse, lse, has):
        bound = (torch.logaddexp(row_lse[:, None], lse) + d).relu().square()
        return torch.where(same & (has | d.isnan()), bound, 0.0).sum(1), same.sum(1)

    total, pairs = map_labelled(positives, features, labels, "euclidean", lse, shared=(lse, has))
    return 0.5 * total.sum() / pairs.sum().clamp(min=1)


class ContrastivePairsLoss(nn.Module):
    """``contrastive_pairs`` as a module: ``ContrastivePairsLoss(pos_margin, neg_margin)(features, labels)``.

    Args:
        pos_margin: at least 0; pairs of one class that are closer than this cost nothing.
        neg_margin: at least 0; pairs of two classes that are farther apart than this cost nothing.
        distance: "euclidean", "squared" or "cosine".
        reduction: "nonzero", "mean" or "sum".

    Examples:
        >>> ContrastivePairsLoss(neg_margin=2.0)(torch.randn(8, 16), torch.arange(8) % 2).shape
        torch.Size([])
    """

    def __init__(self, pos_margin: float = 0.0, neg_margin: float = 1.0, distance: str = "euclidean", reduction: str = "nonzero"):
        super().__init__()
        self.pos_margin, self.neg_margin = pos_margin, neg_margin
        self.distance, self.reduction = distance, reduction

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of features (N, D) with integer labels (N,), a scalar; errors as ``contrastive_pairs``."""
        return contrastive_pairs(
            features, labels, self.pos_margin, self.neg_margin, distance=self.distance, reduction=self.reduction
        )


class TripletLoss(nn.Module):
    """``triplet_batch`` as a module: ``TripletLoss(margin, mining="hard")(features, labels)``.

    Args:
        margin: at least 0, in units of the distance. None: 1 for the hinge and 0 for the soft form.
        mining: "all" triplets of the batch, or the "hard" one of each anchor.
        distance: "euclidean", "squared" or "cosine".
        soft: softplus instead of the hinge.
        reduction: "nonzero", "mean" or "sum".

    Examples:
        >>> TripletLoss(0.2, mining="hard", distance="cosine")(torch.randn(8, 16), torch.arange(8) % 2).shape
        torch.Size([])
    """

    def __init__(
        self,
        margin: float | None = None,
        mining: str = "all",
        distance: str = "euclidean",
        soft: bool = False,
        reduction: str = "nonzero",
    ):
        super().__init__()
        self.margin = margin
        self.kwargs: dict[str, Any] = {"mining": mining, "distance": distance, "soft": soft, "reduction": reduction}

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of features (N, D) with integer labels (N,), a scalar; errors as ``triplet_batch``."""
        return triplet_batch(features, labels, self.margin, **self.kwargs)


class LiftedStructuredLoss(nn.Module):
    """``lifted_structured`` as a module: ``LiftedStructuredLoss(margin)(features, labels)``.

    Args:
        margin: at least 0, in units of the distance.

    Examples:
        >>> LiftedStructuredLoss(margin=1.0)(torch.randn(8, 16), torch.arange(8) % 2).shape
        torch.Size([])
    """

    def __init__(self, margin: float = 1.0):
        super().__init__()
        self.margin = margin

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of features (N, D) with integer labels (N,), a scalar; errors as ``lifted_structured``."""
        return lifted_structured(features, labels, self.margin)
