"""Supervised contrastive loss, the "out" form (Khosla et al. 2020, eq. 2), with class sums in place of an N x N mask.

    loss_i = lse_{j != i} s_ij - scale <z_i, mean of i's positives>,    s_ij = scale <z_i, z_j>,  scale = 1 / temperature

The term of the positives is linear, so their mean comes from one sum over each class: O(N D). With two views and neither labels
nor mask it is NT-Xent.
"""

import torch
from torch import Tensor, nn

from fastssl.ops._checks import FLOATS, INTEGERS, check_choice, check_dense, check_scalar, check_vector, readable
from fastssl.ops.similarity import similarity_lse

from ._common import arange_ids, class_sums, compact_ids, dot_rows, reduce_rows, refuse_group, unit_rows, wide_dtype
from ._rows import matmul
from .nt_xent import nt_xent

_OP = "sup_con"


def _check(features, labels, mask, temperature, base_temperature) -> None:
    if not isinstance(features, Tensor):
        raise TypeError(f"{_OP}: features must be a tensor (B, V, D), got {type(features).__name__}")
    if features.dtype not in FLOATS:
        raise TypeError(f"{_OP}: features must be float32, bfloat16, float16 or float64, got {features.dtype}")
    if features.dim() < 3 or 0 in features.shape:
        raise ValueError(f"{_OP}: features must be (B, V, D) with at least one row, view and column, got {tuple(features.shape)}")
    check_scalar(_OP, "temperature", temperature, features, zero=False)
    if base_temperature is not None:
        check_scalar(_OP, "base_temperature", base_temperature, features, zero=False)
    rows = features.shape[0]
    if labels is not None and mask is not None:
        raise ValueError(f"{_OP}: labels and mask were both given; give one")
    if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) != (rows, rows) or mask.device != features.device):
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{_OP}: mask must have shape ({rows}, {rows}) on {features.device}, got {got}")


def _class_ids(features: Tensor, labels: Tensor | None) -> Tensor | None:
    """labels (B,) or (B, 1) of any real dtype -> (B,) integers, equal where the labels are."""
    if labels is None:
        return None
    check_dense(_OP, "labels", labels, "a tensor (B,)")
    if labels.dtype.is_complex:
        raise TypeError(f"{_OP}: labels must have an integer, bool or float dtype, got {labels.dtype}")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    check_vector(_OP, "labels", labels, len(features), (labels.dtype,), "features", features)
    if labels.dtype.is_floating_point:
        if readable(labels) and labels.isnan().any():
            raise ValueError(f"{_OP}: labels must not be NaN, which is equal to nothing")
        return compact_ids(labels.detach())
    return labels if labels.dtype in INTEGERS else labels.to(torch.int64)  # bool, and unsigned integers that few kernels know


def _positive_sums(z: Tensor, anchors: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums (A B, D) of the positives of the first A views, and their counts (A B,): z (B, V, D), anchors (A, B, D).

    The anchor itself is no positive. A mask counts with its values, so that soft masks weigh.
    """
    views = z.shape[1]
    of_sample = z.sum(1)  # (B, D)
    if mask is not None:
        weight = mask.to(z.dtype)
        sums, count = matmul(weight, of_sample), views * weight.sum(1)
        own = weight.diagonal()
    else:
        own = z.new_ones(len(z))
        if labels is None:
            sums, count = of_sample, views * own
        else:
            ids = compact_ids(labels)
            sums = class_sums(of_sample, ids)[ids]
            count = views * class_sums(own[:, None], ids)[ids, 0]
    sums = sums - own[:, None] * anchors  # (A, B, D)
    return sums.flatten(0, 1), (count - own).expand(len(anchors), -1).flatten()


def sup_con(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    base_temperature: float | None = None,
    normalize: bool = False,
    group=None,
    mask: Tensor | None = None,
    contrast_mode: str = "all",
    reduction: str = "mean",
) -> Tensor:
    """Supervised contrastive loss L_out over B samples of V views, without the matrix of similarities.

    Args:
        features: (B, V, D), further dimensions flattened into D; float32, bfloat16, float16 or float64, of unit length unless
            ``normalize``.
        labels: (B,) or (B, 1), any values (class, patient, volume) of an integer, bool or float dtype: views of samples of equal
            label are positives. Without labels and mask only the views of one sample are. NaN is refused on a CPU; on a GPU
            each NaN is a label of its own.
        temperature: number or one-element float tensor, not 0; a tensor may need a gradient.
        base_temperature: the loss is multiplied by temperature / base_temperature, as in SupContrast (0.07 there); None: not.
        normalize: scale rows to unit length first.
        group: reserved for features from other processes; not there yet.
        mask: (B, B), in place of labels: mask[i, j] is 1 where sample j is a positive of sample i (need not be symmetric).
        contrast_mode: "all": every view is an anchor; "one": the first view is.
        reduction: "mean", "sum", or "none" for the losses of the anchors, view after view: (V B,) or (B,).

    Returns:
        The loss, float32 (float64 for float64 input). An anchor without positives counts as 0. Memory O(B V D) (and the mask).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature, or labels and mask both given.
    """
    _check(features, labels, mask, temperature, base_temperature)
    labels = _class_ids(features, labels)
    check_choice(_OP, "contrast_mode", contrast_mode, ("all", "one"))
    check_choice(_OP, "reduction", reduction, ("mean", "sum", "none"))
    refuse_group(_OP, group)
    features = features.flatten(2)
    factor = 1.0 if base_temperature is None else temperature / base_temperature
    if labels is None and mask is None and contrast_mode == "all" and features.shape[1] == 2:
        return factor * nt_xent(features[:, 0], features[:, 1], temperature, normalize=normalize, reduction=reduction)
    scale = 1.0 / temperature
    z = unit_rows(features) if normalize else features
    contrast = z.transpose(0, 1).reshape(-1, z.shape[2])  # (V B, D), view after view
    ids = arange_ids(contrast)
    views = z.shape[1] if contrast_mode == "all" else 1
    if views == z.shape[1]:
        anchors, lse = contrast, similarity_lse(contrast, contrast, scale=scale, x_id=ids)
    else:
        anchors = contrast[: len(z)]
        lse = similarity_lse(anchors, contrast, scale=scale, x_id=ids[: len(z)], y_id=ids)
    wide = wide_dtype(z)
    sums, count = _positive_sums(z.to(wide), anchors.to(wide).unflatten(0, (views, -1)), labels, mask)
    some = count > 1e-6
    rows = lse - scale * dot_rows(anchors.to(wide), sums) / count.clamp_min(1e-6)
    return factor * reduce_rows(torch.where(some, rows, 0.0), reduction)


class SupConLoss(nn.Module):
    """``sup_con`` with the arguments of SupContrast's ``SupConLoss``: the base temperature is 0.07 there."""

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        contrast_mode: str = "all",
        base_temperature: float | None = 0.07,
        *,
        normalize: bool = False,
    ):
        super().__init__()
        check_choice("SupConLoss", "contrast_mode", contrast_mode, ("all", "one"))
        self.temperature, self.contrast_mode = temperature, contrast_mode
        self.base_temperature, self.normalize = base_temperature, normalize

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """features (B, V, ...), labels (B,) or (B, 1) of any real dtype, or mask (B, B), or neither -> loss."""
        options = {"temperature": self.temperature, "base_temperature": self.base_temperature, "normalize": self.normalize}
        return sup_con(features, labels, mask=mask, contrast_mode=self.contrast_mode, **options)
