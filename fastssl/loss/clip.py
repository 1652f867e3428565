"""CLIP's and SigLIP's losses over N image-text pairs, without the N x N logits.

    CLIP    l_ij = scale <image_i, text_j>,  loss = (1 / 2N) sum_i [softplus(row_i - l_ii) + softplus(column_i - l_ii)]
    SigLIP  l_ij = scale <image_i, text_j> + bias,  loss = (1 / N) sum_ij softplus(-t_ij l_ij),  t = +1 for pairs, else -1

row_i and column_i are the log-sum-exps over the negatives of image i and of text i. One sweep gives both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import (
    INTEGERS,
    accumulator_dtype,
    check_choice,
    check_flag,
    check_number,
    check_scalar,
    check_vector,
    check_views,
)
from fastssl.distributed.class_sums import class_sums_of_all
from fastssl.distributed.sigmoid_pair import sigmoid_pair as sigmoid_pair_of_all
from fastssl.ops.sigmoid_pair import sigmoid_pair

from .info_nce import both_directions
from .parts.arguments import enter, scalar, together
from .parts.dot_products import paired
from .parts.ids import class_sums, compact_ids, row_ids
from .parts.one_call import clip_in_one_call
from .parts.reductions import reduce_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks


def _check_pairs(op: str, image, text, logit_scale, logit_bias, normalize, ids: dict) -> None:
    check_views(op, ("image", "text"), image, text)
    check_flag(op, "normalize", normalize)
    check_scalar(op, "logit_scale", logit_scale, image)
    if logit_bias is not None:
        check_scalar(op, "logit_bias", logit_bias, image)
    for name, value in ids.items():
        if value is not None:
            check_vector(op, name, value, image.shape[0], INTEGERS, "image", image)


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    normalize: bool = False,
    group: ProcessGroup | Ranks | None = None,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric cross-entropy of CLIP (Radford et al. 2021, figure 3) over N pairs, without the N x N logits.

    Equals ``(F.cross_entropy(s, range(N)) + F.cross_entropy(s.T, range(N))) / 2`` with ``s = logit_scale * image @ text.T``;
    open_clip's ``ClipLoss`` in one process.

    Args:
        image: (N, D) float32, bfloat16, float16 or float64, of unit length unless ``normalize``.
        text: (N, D), dtype and device of ``image``; row i belongs to image i.
        logit_scale: multiplies the similarities (1 / temperature, after exp where its logarithm is learned); a number or a
            one-element float tensor, which may need a gradient.
        logit_bias: added to every logit. A softmax does not see it: the loss is the same, and its gradient is 0.
        normalize: scale rows to unit length first (fused).
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the pairs of all its processes are
            contrasted. Each process gets its share: the mean of the shares, and of their gradients, is that of one process with
            the joined batch. None: this process's rows alone.
        ids: (N,) integers; pairs of equal id (copies of a picture, a caption used twice) are not each other's negatives.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``, in both directions.

    Returns:
        A scalar, float32 (float64 for float64 input). Memory O(N D), and on a CPU at most 64 MiB of logits from the forward to
        the backward. Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, or a scale or bias that is not finite.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> image, text = torch.eye(4), torch.eye(4)
        >>> round(clip_loss(image, text, logit_scale=1.0).item(), 4)  # log((e + 3) / e)
        0.7437
        >>> clip_loss(image, text, 1.0, ids=torch.zeros(4, dtype=torch.int64)).item()  # all pairs alike: no negatives
        0.0
    """
    op = "clip_loss"
    loss = clip_in_one_call(op, image, text, logit_scale, normalize, ((None, (logit_bias, group, ids)), (0.0, (label_smoothing,))))
    if loss is not None:
        return loss
    image, text = enter(op, image, text)
    _check_pairs(op, image, text, logit_scale, logit_bias, normalize, {"ids": ids})
    check_number(op, "label_smoothing", label_smoothing, 0.0, 1.0)
    joined = together(
        op, group, image, **_alike(image, text, logit_scale, normalize), smoothing=label_smoothing, ids=ids is not None
    )
    return clip_of(op, image, text, logit_scale, logit_bias, normalize, ids, label_smoothing, joined)


def _alike(image: Tensor, text: Tensor, logit_scale: float | Tensor, normalize: bool) -> dict:
    """What every process must have given alike."""
    return {"scale": logit_scale, "normalize": normalize, "grad": f"{image.requires_grad} {text.requires_grad}"}


def clip_of(
    op: str,
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
    normalize: bool = False,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    joined: Joined | None = None,
) -> Tensor:
    """``clip_loss`` of checked pairs, without the warning about local rows."""
    x, y, dot = paired(op, image, text, normalize)
    losses, _, _ = both_directions(op, x, y, dot, scalar(logit_scale, x), ids, None, label_smoothing, joined)
    loss = reduce_rows(losses, "mean", joined)
    return loss + 0.0 * logit_bias.reshape(()).to(loss.dtype) if isinstance(logit_bias, Tensor) else loss


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    normalize: bool = False,
    group: ProcessGroup | Ranks | None = None,
    image_id: Tensor | None = None,
    text_id: Tensor | None = None,
    weighting: str = "none",
) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, eq. 1): the sum over all N x N pairs divided by N, as open_clip's.

    ``loss = -(1 / N) sum_ij log sigmoid(t_ij (logit_scale <image_i, text_j> + logit_bias))``, where t_ij is 1 for a pair that
    belongs together and -1 otherwise. No N x N logits and no labels are made.

    Args:
        image: (N, D) float32, bfloat16, float16 or float64, of unit length unless ``normalize``.
        text: (N, D), dtype and device of ``image``; row i belongs to image i.
        logit_scale: multiplies the similarities (after exp where its logarithm is learned); a number or a one-element float tensor,
            which may need a gradient.
        logit_bias: added to every logit (the paper starts at -10); a number or a one-element float tensor, which may need a
            gradient.
        normalize: scale rows to unit length first (fused).
        group: a process group, or ``fastssl.distributed.Ranks`` to choose how rows travel: the pairs of all its processes are
            contrasted. Each process gets its share: the mean of the shares, and of their gradients, is that of one process with
            the joined batch. None: this process's rows alone.
        image_id: (N,) integers. An image and a text of equal id are a positive pair; by default only image i and text i are.
        text_id: (N,) integers; by default ``image_id``.
        weighting: "none": every positive counts once. "balanced": 1 / (2 k_i) + 1 / (2 k'_j), with k positives in the row and
            k' in the column, so that an image with many captions does not outweigh the others (SigLIP+).

    Returns:
        A scalar, float32 (float64 for float64 input). Memory O(N D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or weighting, or a scale or bias that is not finite.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> image, text = torch.eye(4), torch.eye(4)
        >>> matching = siglip_loss(image, text, logit_scale=10.0, logit_bias=-5.0)
        >>> bool(matching < siglip_loss(image, text.roll(1, 0), logit_scale=10.0, logit_bias=-5.0))
        True
    """
    op = "siglip_loss"
    image, text = enter(op, image, text)
    _check_pairs(op, image, text, logit_scale, logit_bias, normalize, {"image_id": image_id, "text_id": text_id})
    if logit_bias is None:
        raise TypeError(f"{op}: logit_bias must be a number or a one-element float tensor, got NoneType")
    check_choice(op, "weighting", weighting, ("none", "balanced"))
    if image_id is None and text_id is not None:
        raise ValueError(f"{op}: text_id was given without image_id")
    how = _alike(image, text, logit_scale, normalize) | {"bias": logit_bias, "ids": image_id is not None, "weighting": weighting}
    joined = together(op, group, image, **how)
    x, y = paired(op, image, text, normalize)[:2] if normalize else (image, text)
    x_id = row_ids(x, joined) if image_id is None else image_id
    y_id = x_id if text_id is None else text_id
    x_weight = y_weight = None
    if weighting == "balanced":
        x_weight, y_weight = _half_inverse_counts(x_id, y_id, accumulator_dtype(x), joined)
    how = {"scale": logit_scale, "bias": logit_bias, "x_id": x_id, "y_id": y_id, "x_weight": x_weight, "y_weight": y_weight}
    if joined is None:
        return sigmoid_pair(x, y, **how, op=op) / len(image)
    return joined.mean(sigmoid_pair_of_all(joined, x, y, **how))


def _half_inverse_counts(x_id: Tensor, y_id: Tensor, dtype: torch.dtype, joined: Joined | None) -> tuple[Tensor, Tensor]:
    """1 / (2 k): k_i columns with the id of row i, and k_j rows with the id of column j; where there are none, 0."""
    wide = torch.promote_types(x_id.dtype, y_id.dtype)
    if joined is not None:
        x_id, y_id = x_id.to(wide), y_id.to(wide)
        one = torch.ones(len(x_id), 1, dtype=dtype, device=x_id.device)
        of_x, of_y = class_sums_of_all(joined, one, y_id, x_id)[:, 0], class_sums_of_all(joined, one, x_id, y_id)[:, 0]
    else:
        compact = compact_ids(torch.cat([x_id.to(wide), y_id.to(wide)]))
        one = torch.ones(len(compact), 1, dtype=dtype, device=x_id.device)
        of_x, of_y = one.clone(), one.clone()
        of_x[len(x_id) :], of_y[: len(x_id)] = 0.0, 0.0
        rows, columns = class_sums(of_x, compact)[:, 0], class_sums(of_y, compact)[:, 0]
        of_x, of_y = columns[compact[: len(x_id)]], rows[compact[len(x_id) :]]
    return 0.5 / of_x.clamp_min(1.0) * (of_x > 0), 0.5 / of_y.clamp_min(1.0) * (of_y > 0)
