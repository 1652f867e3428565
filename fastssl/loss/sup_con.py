"""Supervised contrastive loss, the "out" form (Khosla et al. 2020, eq. 2), with class sums in place of an N x N mask.

    loss_i = lse_{j != i} s_ij - scale <z_i, mean of i's positives>,    s_ij = scale <z_i, z_j>,  scale = 1 / temperature

The term of the positives is linear, so their mean comes from one sum over each class, in O(N D). With P positives the loss is at
least log P, so it can be small only where an anchor has a single positive. There the log-sum-exp leaves the positive out, and
softplus(lse - s) keeps the digits, as in NT-Xent. With two views and neither labels nor mask the loss is NT-Xent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.checks import (
    FLOATS,
    INTEGERS,
    check_choice,
    check_dense,
    check_flag,
    check_float_dtype,
    check_scalar,
    check_vector,
    check_whole,
    readable,
    savable,
)
from fastssl.distributed.class_sums import sum_of_all

from .parts.arguments import enter, scalar, together
from .parts.dot_products import dot_rows, matmul, paired, wide_rows
from .parts.ids import compact_ids, row_ids
from .parts.negative_sums import ids_to_sum_by, sums_by_id
from .parts.one_call import sup_con_in_one_call
from .parts.reductions import check_reduction, lse_of, positive_loss, reduce_rows, softplus

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks

_OP = "sup_con"


def _check(features, labels, mask, temperature, base_temperature) -> None:
    """Everything but the values of the labels."""
    check_dense(_OP, "features", features, "a tensor (B, V, D)")
    check_float_dtype(_OP, "features", features)
    if features.dim() < 3 or 0 in features.shape:
        raise ValueError(f"{_OP}: features must be (B, V, D) with at least one row, view and column, got {tuple(features.shape)}")
    check_scalar(_OP, "temperature", temperature, features, zero=False)
    if base_temperature is not None:
        check_scalar(_OP, "base_temperature", base_temperature, features, zero=False)
    rows = features.shape[0]
    if labels is not None and mask is not None:
        raise ValueError(f"{_OP}: labels and mask were both given; give one")
    if mask is not None:
        _check_mask(mask, rows, features)


def _check_mask(mask, rows: int, features: Tensor) -> None:
    """(B, B), real, finite and not negative; the values are looked at on the CPU only."""
    check_dense(_OP, "mask", mask, "a tensor ({}, {})", rows, rows)
    if mask.dtype.is_complex:
        raise TypeError(f"{_OP}: mask must be real, got {mask.dtype}")
    if tuple(mask.shape) != (rows, rows) or mask.device != features.device:
        got = f"{tuple(mask.shape)} on {mask.device}"
        raise ValueError(f"{_OP}: mask must have shape ({rows}, {rows}) on {features.device}, got {got}")
    if readable(mask) and mask.dtype.is_floating_point:
        low, high = mask.detach().aminmax() if mask.dtype in FLOATS else mask.detach().float().aminmax()
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"{_OP}: mask must be finite and at least 0, got values from {low.item()} to {high.item()}")
    elif readable(mask) and mask.dtype.is_signed and mask.amin() < 0:
        raise ValueError(f"{_OP}: mask must be finite and at least 0, got {mask.amin().item()}")


def _class_ids(features: Tensor, labels: Tensor | None, of_all: bool) -> Tensor | None:
    """Integers (B,) for labels (B,) or (B, 1) of any real dtype, equal where the labels are; with ``of_all`` in every process."""
    if labels is None:
        return None
    check_dense(_OP, "labels", labels, "a tensor (B,)")
    if labels.dtype.is_complex or (labels.dtype.is_floating_point and labels.dtype not in FLOATS):
        raise TypeError(f"{_OP}: labels must have an integer, bool or float dtype, got {labels.dtype}")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    check_vector(_OP, "labels", labels, len(features), (labels.dtype,), "features", features)
    if labels.dtype.is_floating_point:
        if readable(labels) and labels.isnan().any():
            raise ValueError(f"{_OP}: labels must not be NaN, which is equal to nothing")
        labels = labels.detach()
        return (labels.double() + 0.0).view(torch.int64) if of_all else compact_ids(labels)  # the sum makes 0.0 of -0.0
    return labels if labels.dtype in INTEGERS else labels.to(torch.int64)  # bool, and unsigned integers that few kernels know


def _labelled(labels: Tensor | None, ignore_label: int | None) -> Tensor | None:
    """(B,) bool, which labels are not ``ignore_label``; None: all of them count."""
    if ignore_label is None:
        return None
    ignore_label = check_whole(_OP, "ignore_label", ignore_label, -(2**63), 2**63)
    if labels is None:
        raise ValueError(f"{_OP}: ignore_label was given without labels")
    if not _holds(labels.dtype, ignore_label):
        raise ValueError(f"{_OP}: ignore_label must be a number that labels of {labels.dtype} can hold, got {ignore_label}")
    return (labels if labels.is_floating_point() else labels.to(torch.int64)).flatten() != ignore_label


def _holds(dtype: torch.dtype, value: int) -> bool:
    """Whether the dtype can hold ``value``; of a float dtype, whether it holds every whole number up to it."""
    if dtype.is_floating_point:
        return abs(value) <= 2 / torch.finfo(dtype).eps
    return 0 <= value <= 1 if dtype == torch.bool else torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _positive_sums(
    z: Tensor, anchors: Tensor, ids: Tensor | None, mask: Tensor | None, joined: Joined | None
) -> tuple[Tensor, Tensor]:
    """Sums (A B, D) of the positives of the first A views, and their counts (B,): z (B, V, D), anchors (A, B, D), ids (B,).

    The anchor itself is no positive. A mask counts with its values, so that soft masks weigh the positives. A sum from which an
    anchor is subtracted is in float64: after a huge row was subtracted, the sum is what it would have been without that row.
    """
    views = z.shape[1]
    of_sample = z.sum(1, dtype=torch.float64)  # (B, D)
    own: Tensor = z.new_ones(len(z))
    others: Tensor | float = 0.0
    if mask is not None:
        weight = savable(mask).to(z.dtype)
        own, count = weight.diagonal(), views * weight.sum(1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        others = matmul(weight.masked_fill(itself, 0.0), of_sample.to(z.dtype))
    elif ids is not None:
        count = views * sums_by_id(own[:, None], ids, joined)[:, 0]
        of_sample = sums_by_id(of_sample, ids, joined)
    else:
        count = views * own
    sums = torch.stack([others + own[:, None] * (of_sample - anchor).to(z.dtype) for anchor in anchors])  # (A, B, D)
    return sums.flatten(0, 1), count - own


def _pair_ids(row: Tensor, views: int, ids: Tensor | None, alone: Tensor, joined: Joined | None) -> Tensor:
    """Ids (V, B) int32 of the samples ``row`` (B,), V = 1 or 2 views: by them the log-sum-exp leaves a single positive out.

    Each row has an id of its own, except where ``alone`` (B,) says that an anchor has one positive: the two share an id.
    """
    first = views * row
    if views == 1 and ids is not None:
        partner = sums_by_id(row[:, None].double(), ids, joined)[:, 0].to(row.dtype) - row  # where two samples make the class
        first = torch.minimum(row, partner)
    return torch.where(alone, first, torch.stack([views * row + view for view in range(views)]))


def sup_con(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    base_temperature: float | None = None,
    normalize: bool = False,
    group: ProcessGroup | Ranks | None = None,
    mask: Tensor | None = None,
    contrast_mode: str = "all",
    reduction: str = "mean",
    ignore_label: int | None = None,
) -> Tensor:
    """Supervised contrastive loss L_out (Khosla et al. 2020, eq. 2) over B samples of V views, without the matrix of similarities.

    ``loss_i = log sum_{j != i} exp(s_ij) - mean over the positives p of i of s_ip``, where ``s = <z_i, z_j> / temperature`` runs
    over all V B rows. Views of one sample are positives of each other, and so are views of samples of equal label.

    Args:
        features: (B, V, D), further dimensions flattened into D; float32, bfloat16, float16 or float64, of unit length unless
            ``normalize``.
        labels: (B,) or (B, 1), any values (class, patient, volume) of an integer, bool or float dtype: views of samples of equal
            label are positives. Without labels and mask only the views of one sample are. NaN is refused on a CPU; on a GPU
            each NaN is a label of its own.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        base_temperature: the loss is multiplied by temperature / base_temperature, as in SupContrast (0.07 there). None: it is not.
        normalize: scale rows to unit length first.
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the samples of all its processes are
            contrasted, and labels are compared across processes. Each process gets its share: the mean of the shares, and of
            their gradients, is that of one process with the joined batch. Not together with ``mask``. None: this process's
            samples alone.
        mask: (B, B), in place of labels: mask[i, j] is 1 where sample j is a positive of sample i (need not be symmetric).
        contrast_mode: "all": every view is an anchor; "one": the first view is.
        reduction: "mean" or "sum" over the anchors, or "none" for their losses, view after view: (V B,), or (B,) with "one".
        ignore_label: the label of samples that have none, such as -1: they are neither anchors (left out of the mean, 0 with
            "none") nor positives, and stay negatives of the others. Without a labelled sample the loss is 0.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. An anchor without positives counts as
        0. Memory O(B V D), and the mask. Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, labels and mask both given, or a mask that is complex,
            negative or not finite.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> features = torch.eye(4)[[0, 0, 1, 1]].view(4, 1, 4)  # 4 samples of one view
        >>> right = sup_con(features, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        >>> bool(right < sup_con(features, torch.tensor([0, 1, 0, 1]), temperature=1.0))
        True
    """
    others = ((None, (group, mask, base_temperature, ignore_label)), ("all", (contrast_mode,)))
    loss = sup_con_in_one_call(_OP, features, labels, temperature, normalize, reduction, others)
    if loss is not None:
        return loss
    (features,) = enter(_OP, features)
    _check(features, labels, mask, temperature, base_temperature)
    given, labels = labels, _class_ids(features, labels, group is not None)
    labelled = _labelled(given, ignore_label)
    check_flag(_OP, "normalize", normalize)
    check_choice(_OP, "contrast_mode", contrast_mode, ("all", "one"))
    check_reduction(_OP, reduction)
    if mask is not None and group is not None:
        raise ValueError(f"{_OP}: mask and group were both given; across processes positives follow from labels")
    features = features.flatten(2)
    how = {"temperature": temperature, "labels": None if labels is None else str(labels.dtype), "mode": contrast_mode}
    how |= {"ignore_label": ignore_label, "normalize": normalize, "reduction": reduction, "grad": features.requires_grad}
    joined = together(_OP, group, features, **how)
    temperature = scalar(temperature, features)
    weight = 1.0 if base_temperature is None else temperature / scalar(base_temperature, features)
    if labels is None and mask is None and contrast_mode == "all" and features.shape[1] == 2:
        return weight * _two_views(features, 1.0 / temperature, normalize, reduction, joined)
    rows = _anchor_rows(features, labels, mask, 1.0 / temperature, normalize, contrast_mode, joined)
    return weight * (reduce_rows(rows, reduction, joined) if labelled is None else _of_labelled(rows, labelled, reduction, joined))


def _of_labelled(rows: Tensor, labelled: Tensor, reduction: str, joined: Joined | None) -> Tensor:
    """Losses (A, B) of the anchors reduced, where the samples that are not ``labelled`` (B,) do not count."""
    rows = torch.where(labelled, rows, 0.0)
    if reduction != "mean":
        return reduce_rows(rows, reduction, joined)
    count = len(rows) * labelled.sum()
    if joined is None:
        return rows.sum() / count.clamp_min(1)
    return joined.world * rows.sum() / sum_of_all(joined, count).clamp_min(1)


def _two_views(features: Tensor, scale, normalize: bool, reduction: str, joined: Joined | None) -> Tensor:
    """Two views without labels, which is NT-Xent: each row has one positive."""
    a, b, dot = paired(_OP, features[:, 0], features[:, 1], normalize)
    z, pair = torch.cat([a, b]), row_ids(a, joined).repeat(2)
    if joined is None:
        lse = lse_of(_OP, z, z, scale=scale, x_id=pair)
    else:
        lse = lse_of(_OP, z, z, joined.times(2), scale=scale, x_id=pair, y_id=pair)
    return positive_loss(_OP, lse, dot, scale, reduction, joined)


def _anchor_rows(features: Tensor, labels, mask, scale, normalize: bool, contrast_mode: str, joined: Joined | None) -> Tensor:
    """The losses (A, B) of the anchors, view after view: 0 for an anchor without positives; a NaN stays one.

    Where all positives are alike, the gradient of the log-sum-exp cancels against theirs, so both are added in ``z``, which has
    the accumulator's dtype.
    """
    z = wide_rows(features, normalize)
    samples, views, _ = z.shape
    contrast = z.transpose(0, 1).reshape(samples * views, -1)  # (V B, D), view after view
    used = views if contrast_mode == "all" else 1
    anchors = contrast[: used * samples] if used < views else contrast
    classes = None if labels is None else ids_to_sum_by(labels, joined)
    sums, count = _positive_sums(z, anchors.unflatten(0, (used, -1)), classes, mask, joined)
    one, row = None, row_ids(z, joined)
    if mask is None and views <= 2:  # otherwise no anchor is known to have a single positive
        one = count == 1
        ids = _pair_ids(row, views, classes, one, joined).flatten()
    else:
        ids = torch.cat([views * row + view for view in range(views)])
    itself = anchors is contrast and joined is None
    x_id = ids if anchors is contrast else ids[: len(anchors)]
    how = {"scale": scale, "x_id": x_id, "y_id": None if itself else ids}
    if joined is None:
        lse = lse_of(_OP, anchors, contrast, products=features.dtype, **how)
    else:
        narrow = contrast.to(features.dtype)
        own = narrow if anchors is contrast else narrow[: len(anchors)]
        lse = lse_of(_OP, own, narrow, joined.times(views), **how)
    mean = dot_rows(anchors, sums).view(used, -1) / count.clamp_min(1e-6)
    rows = lse.view(used, -1) - scale * mean
    if one is not None:
        rows = torch.where(one, softplus(rows), rows)  # lse is over the negatives there
    return torch.where((count <= 1e-6) & ~rows.isnan(), 0.0, rows)


class SupConLoss(nn.Module):
    """``sup_con`` with the arguments of SupContrast's ``SupConLoss``, whose base temperature is 0.07.

    Args:
        temperature: divides the similarities; a number, or a one-element float tensor such as a learned ``nn.Parameter``; not 0.
        contrast_mode: "all": every view is an anchor; "one": the first view is.
        base_temperature: the loss is multiplied by temperature / base_temperature. None: it is not.
        normalize: scale rows to unit length first; otherwise features are expected at unit length, as in SupContrast.
        ignore_label: the label of samples that have none, as in ``sup_con``; without effect where no labels are given.

    Raises:
        TypeError, ValueError: another contrast_mode.

    Examples:
        >>> criterion = SupConLoss(temperature=0.1, normalize=True)
        >>> features, labels = torch.randn(8, 2, 16, requires_grad=True), torch.arange(8) % 3
        >>> criterion(features, labels).backward()
        >>> features.grad.shape
        torch.Size([8, 2, 16])
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        contrast_mode: str = "all",
        base_temperature: float | None = 0.07,
        *,
        normalize: bool = False,
        ignore_label: int | None = None,
    ):
        super().__init__()
        check_choice("SupConLoss", "contrast_mode", contrast_mode, ("all", "one"))
        self.temperature, self.contrast_mode = temperature, contrast_mode
        self.base_temperature, self.normalize, self.ignore_label = base_temperature, normalize, ignore_label

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mean loss of the anchors.

        Args:
            features: (B, V, ...) float32, bfloat16, float16 or float64.
            labels: (B,) or (B, 1) of any real dtype; views of samples of equal label are positives.
            mask: (B, B), in place of labels: 1 where sample j is a positive of sample i.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``sup_con``.
        """
        return sup_con(
            features,
            labels,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
            normalize=self.normalize,
            mask=mask,
            contrast_mode=self.contrast_mode,
            ignore_label=None if labels is None else self.ignore_label,
        )
