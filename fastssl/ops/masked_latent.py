"""The loss of predicted latents: what a predictor says of hidden tokens against what a teacher makes of them.

    h = rows of the target (N, L, D), normalised without weights: (t - mean) / sqrt(var + eps), var over D   (a layer norm)
    e_{p,k} = pred_{p,k} - h_{p mod N, ids_{p,k}}                       pred (P, K, D), ids (P, K), P a multiple of N
    row_{p,k} = w_{p,k} mean_i d(e_{p,k,i})          d(e) = |e|, e^2, |e|^q / q, or e^2 / (2 beta) below beta, else |e| - beta / 2
    loss = s sum_{p,k} row_{p,k}                     dpred_{p,k,i} = g s w_{p,k} d'(e) / D          s = 1 / (P K), or 1

Only the rows that are named are read, normalised and forgotten. With M = P K D elements one pass reads 2 M, writes M and makes both
the loss and the gradient; where the gradient needs an upstream one that differs from 1, it is multiplied in place. The eager form
normalises all N L D elements, writes them, gathers M by an index of 8 bytes for each, and moves 14 M more.
A row takes about 12 floating-point operations for each element, so that the memory decides.
"""

import math

import torch
from torch import Tensor

from ._register import define_op, first_derivative_only, new_accumulator, save, saved
from .soft_cross_entropy import _scale as scale_rows

COMMON = "Tensor pred, Tensor target, Tensor? ids, Tensor? weight, str loss, float value, bool normalize, float eps, bool mean"

_fwd = define_op(
    "masked_latent_fwd",
    f"({COMMON}) -> (Tensor, Tensor)",
    lambda pred, *_: (new_accumulator(pred), new_accumulator(pred, *pred.shape[:2])),
    "masked_latent",
)
_bwd = define_op(
    "masked_latent_bwd",
    f"(Tensor grad, {COMMON}) -> Tensor",
    lambda grad, pred, *_: pred.new_empty(pred.shape),
    "masked_latent",
)
_one_pass = define_op(
    "masked_latent_one_pass",
    f"({COMMON}) -> (Tensor, Tensor)",
    lambda pred, *_: (new_accumulator(pred), pred.new_empty(pred.shape)),
    "masked_latent",
)


class _OnePass(torch.autograd.Function):
    """One pass, which reads everything once, makes the loss and its gradient for an upstream gradient of 1.

    The first backward gives that gradient away; a second one makes it again.
    """

    @staticmethod
    def forward(ctx, pred, target, ids, weight, how):
        loss, ctx.dpred = _one_pass(pred, target, ids, weight, *how)
        save(ctx, pred, target, ids, weight)
        ctx.how = how
        return loss

    @staticmethod
    @first_derivative_only("masked_latent_loss")
    def backward(ctx, grad):
        dpred, ctx.dpred = ctx.dpred, None
        if dpred is None or (grad.device.type == "cpu" and not math.isfinite(grad.item())):  # 0 where the weight is 0, not NaN
            return _bwd(grad, *saved(ctx), *ctx.how), *(None,) * 4
        scale_rows(dpred.view(-1, dpred.shape[2]), grad)  # on a GPU, too, nothing is read where it is 1
        return dpred, *(None,) * 4


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, ids, weight, how, rows):
        save(ctx, pred, target, ids, weight)
        ctx.how = how
        return _fwd(pred, target, ids, weight, *how)[rows]

    @staticmethod
    @first_derivative_only("masked_latent_loss")
    def backward(ctx, grad):
        return _bwd(grad.contiguous(), *saved(ctx), *ctx.how), *(None,) * 5


def masked_latent(
    pred: Tensor, target: Tensor, ids: Tensor | None, weight: Tensor | None, *, how: tuple[str, float, bool, float], reduction: str
) -> Tensor:
    """The loss of tensors that are checked, with rows whose entries are neighbours; ``how`` is (loss, value, normalize, eps).

    "mean" is over the P K rows, whatever their weights are; "none" gives (P, K).
    """
    every = (*how, reduction == "mean")
    wants = pred.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    # The gradient of a mean underflows in float16 before it is multiplied by a scale such as that of a gradient scaler.
    if wants and reduction != "none" and pred.dtype != torch.float16:
        return _OnePass.apply(pred, target, ids, weight, every)
    return _Loss.apply(pred, target, ids, weight, every, int(reduction == "none"))
