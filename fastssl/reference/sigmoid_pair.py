"""The pairwise sigmoid loss in plain PyTorch, with its gradients from the same sweep.

    l_ij = scale <x_i, y_j> + bias,   t_ij = +1 where x_id_i = y_id_j, else -1                      x (N, D), y (M, D)
    v_ij = x_weight_i + y_weight_j where t_ij = +1 (1 without weights), else 1
    loss = sum_ij v_ij softplus(-t_ij l_ij)            w_ij = dloss / dl_ij = -t_ij v_ij sigmoid(-t_ij l_ij)
    dx = scale w y,   dy = scale w^T x,   dscale = sum_ij w_ij <x_i, y_j>,   dbias = sum_ij w_ij

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops._operands import factor_of


def sigmoid_pair(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    bias: float,
    bias_term: Tensor | None,  # one element, added to bias
    x_id: Tensor,  # (N,)
    y_id: Tensor,  # (M,)
    x_weight: Tensor | None,  # (N,)
    y_weight: Tensor | None,  # (M,), given with x_weight
    need: Sequence[bool],  # dx, dy, dscale, dbias
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss (), dx (N, D), dy (M, D), dscale () and dbias () in the accumulator's dtype; what ``need`` leaves out is empty."""
    with torch.autocast(x.device.type, enabled=False):
        dtype = accumulator_dtype(x)
        xf, yf = x.to(dtype), y.to(dtype)
        factor = factor_of(scale, scale_factor, dtype)
        logits = factor * (xf @ yf.T) + (bias if bias_term is None else bias + bias_term.reshape(()).to(dtype))
        positive = x_id[:, None] == y_id[None, :]
        sign = torch.where(positive, 1.0, -1.0).to(dtype)
        weight = torch.ones_like(logits)
        if x_weight is not None and y_weight is not None:
            weight = torch.where(positive, x_weight.to(dtype)[:, None] + y_weight.to(dtype)[None, :], weight)
        loss = (weight * F.softplus(-sign * logits, threshold=40.0)).sum()
        w = -sign * weight * torch.sigmoid(-sign * logits)
        none = xf.new_empty(0)
        own = w @ yf if need[0] or need[2] else none
        return (
            loss,
            factor * own if need[0] else none,
            factor * (w.T @ xf) if need[1] else none,
            (xf * own).sum() if need[2] else none,
            w.sum() if need[3] else none,
        )
