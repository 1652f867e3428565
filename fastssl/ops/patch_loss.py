"""MAE's loss: predicted against true pixels of the removed patches; the target is made from the image on the way.

    t_{n,l} = patch l of image n, entries in the order (p, q, c) or (c, p, q)                                     (P,), P = C p q
    normalised: t <- (t - mean) / sqrt(var + eps), var unbiased                                       (He et al. 2022, section 3)
    loss = sum_{n,l} m_{n,l} mean_i d(pred_{n,l,i} - t_{n,l,i}) / sum_{n,l} m_{n,l},       d(e) = e^2 or |e|
    dpred_{n,l,i} = g m_{n,l} d'(e) / (P sum m)

Only patches whose weight is not 0 are read, and all other rows of pred get a gradient of 0. With M = N L P elements and a share r
of removed patches the forward reads 2 r M elements; the backward reads 2 r M and writes M. The eager form moves 14 times as many.
Kept for the backward besides images, pred and mask: mean and 1 / sqrt(var + eps) of each patch, where normalised. On a CPU one
pass makes loss and gradient, reads 2 r M and writes M; the gradient is kept.
"""

import math

import torch
from torch import Tensor

from fastssl.checks import FLOATS, check_choice, check_constant, check_dense, check_flag, check_number, readable

from ._patches import check_device, check_floats, check_ids, dense_rows, patch_grid, side_pair, trackable
from ._register import define_op, first_derivative_only, new_accumulator, refuse_transforms, save, saved

_COMMON = (
    "Tensor images, Tensor pred, Tensor? mask, Tensor? ids, SymInt height, SymInt width, "
    "bool channels_last, bool normalize, float eps, bool absolute"
)


def _fake_fwd(images, pred, mask, ids, height, width, channels_last, normalize, eps, absolute):
    stats = new_accumulator(pred, *((*pred.shape[:2], 2) if normalize else (0,)))
    return new_accumulator(pred), new_accumulator(pred), stats


_fwd = define_op("patch_loss_fwd", f"({_COMMON}) -> (Tensor, Tensor, Tensor)", _fake_fwd, "patch_loss")
_bwd = define_op(
    "patch_loss_bwd",
    f"(Tensor grad, Tensor total, Tensor stats, {_COMMON}) -> Tensor",
    lambda grad, total, stats, images, pred, *_: pred.new_empty(pred.shape),
    "patch_loss",
)


_one_pass = define_op(
    "patch_loss_one_pass",
    f"({_COMMON}) -> (Tensor, Tensor)",
    lambda images, pred, *_: (new_accumulator(pred), pred.new_empty(pred.shape)),
    "patch_loss",
)


class _OnePass(torch.autograd.Function):
    """On a CPU one pass, which reads everything once, makes the loss and its gradient for an upstream gradient of 1.

    The first backward gives that gradient away; a second one makes it again.
    """

    @staticmethod
    def forward(ctx, pred, images, mask, ids, how):
        loss, ctx.dpred = _one_pass(images, pred, mask, ids, *how)
        save(ctx, images, pred, mask, ids)
        ctx.how = how
        return loss

    @staticmethod
    @first_derivative_only("masked_patch_loss")
    def backward(ctx, grad):
        images, pred, mask, ids = saved(ctx)
        dpred, ctx.dpred = ctx.dpred, None
        if dpred is None:
            dpred = _one_pass(images, pred, mask, ids, *ctx.how)[1]
        size = grad.item()
        if size != 1:
            dpred.mul_(grad)
        if mask is not None and not math.isfinite(size):  # 0 in rows of weight 0, not 0 times infinity
            dpred.masked_fill_((mask == 0)[:, :, None], 0.0)
        return dpred, None, None, None, None


class _PatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, images, mask, ids, how):
        loss, total, stats = _fwd(images, pred, mask, ids, *how)
        save(ctx, total, stats, images, pred, mask, ids)
        ctx.how = how
        return loss

    @staticmethod
    @first_derivative_only("masked_patch_loss")
    def backward(ctx, grad):
        total, stats, images, pred, mask, ids = saved(ctx)
        return _bwd(grad, total, stats, images, pred, mask, ids, *ctx.how), None, None, None, None


def masked_patch_loss(
    images: Tensor,
    pred: Tensor,
    mask: Tensor | None,
    patch_size: int | tuple[int, int],
    *,
    norm_pix_loss: bool = False,
    layout: str = "pqc",
    loss: str = "mse",
    ids: Tensor | None = None,
    eps: float = 1e-6,
    empty: str = "error",
) -> Tensor:
    """The mean error of the predicted pixels of the removed patches (He et al. 2022, section 3; L1 as in Xie et al. 2022, eq. 2).

    Args:
        images: (N, C, H, W) float32, bfloat16, float16 or float64. They are a constant of the loss: asking for their gradient is
            refused.
        pred: (N, L, P), P = C p q, L = H W / (p q); with ``ids`` (N, K, P), the rows of the named patches only.
        mask: (N, L) bool or float, the weight of each patch: 1 = removed, 0 = visible; finite and at least 0, which is looked at
            on a CPU alone. It is a constant, as ``images``. None with ``ids``: the patches of ``ids`` have weight 1.
        patch_size: p = q, or (p, q), in pixels; H and W are multiples.
        norm_pix_loss: Whether targets are normalised patch by patch.
        layout: The order of a patch's entries: "pqc" as in MAE, transformers and lightly, "cpq" as in the weights of a
            convolution.
        loss: "mse" or "l1".
        ids: (N, K) int64 in [0, L): the patches that the rows of ``pred`` belong to, such as ``ids_mask``. On a GPU an id out of
            range counts as weight 0.
        eps: What is added to the variance of a patch.
        empty: What a mask without any removed patch gives: "error", or "zero": loss and gradients 0. On a GPU, where looking
            would wait for the device, they are always 0.

    Returns:
        The loss, a float32 scalar (float64 where ``pred`` is). It can be differentiated once, in ``pred``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: ``images`` or ``mask`` requires a gradient, or the call is inside a ``torch.func`` transform or
            forward-mode differentiation.

    Examples:
        >>> import torch
        >>> from fastssl.functional import masked_patch_loss, patchify
        >>> images, mask = torch.zeros(2, 3, 32, 32), torch.tensor([[1.0, 0.0, 0.0, 1.0]]).repeat(2, 1)
        >>> pred = patchify(images, 16) + 0.5
        >>> masked_patch_loss(images, pred, mask, 16)
        tensor(0.2500)
    """
    op = "masked_patch_loss"
    refuse_transforms(op, images, pred, mask)
    check_floats(op, "images", images, "N, C, H, W")
    check_floats(op, "pred", pred, "N, L, P")
    check_device(op, "pred", pred, "images", images)
    check_choice(op, "layout", layout, ("pqc", "cpq"))
    check_choice(op, "loss", loss, ("mse", "l1"))
    check_choice(op, "empty", empty, ("error", "zero"))
    check_flag(op, "norm_pix_loss", norm_pix_loss)
    check_number(op, "eps", eps, 0.0)
    height, width = side_pair(op, "patch_size", patch_size)
    down, across = patch_grid(op, images, (height, width))
    n, length, entries = images.shape[0], down * across, images.shape[1] * height * width
    check_constant(op, "images", images)
    if norm_pix_loss and entries < 2:
        got = f"patch_size {patch_size!r} and images of 1 channel"
        raise ValueError(f"{op}: norm_pix_loss needs patches of at least 2 entries, got {got}")
    if (mask is None) == (ids is None):
        raise ValueError(f"{op}: exactly one of mask and ids must be given")
    rows = length
    if ids is not None:
        check_ids(op, "ids", ids, n, "N, K", length, "images", images, "images and patch_size")
        ids, rows = ids.contiguous(), ids.shape[1]
    if tuple(pred.shape) != (n, rows, entries):
        by = "images and patch_size" if ids is None else "images, patch_size and ids"
        raise ValueError(f"{op}: pred must have shape ({n}, {rows}, {entries}), got {tuple(pred.shape)} (follows from {by})")
    if mask is not None:
        mask = _check_mask(op, mask, images, (n, length), empty)
    how = (height, width, layout == "pqc", bool(norm_pix_loss), float(eps), loss == "l1")
    one_pass = readable(pred) and pred.requires_grad and torch.is_grad_enabled()
    mask, ids = (t if t is None else trackable(t) for t in (mask, ids))
    return (_OnePass if one_pass else _PatchLoss).apply(trackable(dense_rows(pred)), trackable(dense_rows(images)), mask, ids, how)


def _check_mask(op: str, mask, images: Tensor, shape: tuple[int, int], empty: str) -> Tensor:
    """The mask as contiguous float32."""
    check_dense(op, "mask", mask, "a tensor {}", shape)
    if mask.dtype != torch.bool and mask.dtype not in FLOATS:
        raise TypeError(f"{op}: mask must be bool or float, got {mask.dtype}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{op}: mask must have shape {shape}, got {tuple(mask.shape)} (follows from images and patch_size)")
    check_device(op, "mask", mask, "images", images)
    check_constant(op, "mask", mask)
    mask = mask.detach().float().contiguous()
    if not readable(mask):
        return mask
    low, high = (t.item() for t in mask.aminmax())
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"{op}: mask must hold weights that are at least 0 and finite, got {low if not low >= 0 else high}")
    if high == 0 and empty == "error":
        raise ValueError(f'{op}: mask must have at least one removed patch (1), got none; empty="zero" gives a loss of 0')
    return mask
