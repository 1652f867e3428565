"""Row and column log-sum-exp of one similarity matrix in plain PyTorch.

    s_ij = scale * <x_i, y_j>,  -inf where x_id_i = y_id_j               x (N, D), y (M, D)
    row_i = log sum_j exp(s_ij)        column_j = log sum_i exp(s_ij)
    W_ij = drow_i exp(s_ij - row_i) + dcolumn_j exp(s_ij - column_j)     dx = scale W y,  dy = scale W^T x,  dscale = sum W <x, y>

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built.
"""

import torch
from torch import Tensor

from .similarity import _logits, _rank, _softmax, effective_scale


def similarity_cross_fwd(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
    keep_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # row (N,), column (M,), rank (N,) or (0,), kept (keep_rows, M)
    with torch.autocast(x.device.type, enabled=False):
        s = _logits(x, y, scale, scale_factor, x_id, y_id, None)[2]
        return torch.logsumexp(s, dim=1), torch.logsumexp(s, dim=0), _rank(s, threshold), s[:keep_rows].clone()


def similarity_cross_bwd(
    drow, dcolumn, row, column, kept, x, y, scale, scale_factor, x_id, y_id, need
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dy, dscale); a gradient that ``need`` does not ask for is an empty tensor. The kept logits are made again."""
    with torch.autocast(x.device.type, enabled=False):
        xf, yf, s = _logits(x, y, scale, scale_factor, x_id, y_id, None)
        weight = drow[:, None] * _softmax(s, row) + (dcolumn[:, None] * _softmax(s.T, column)).T
        factor = effective_scale(scale, scale_factor, xf.dtype)
        own = weight @ yf
        none = xf.new_empty(0)
        dx = factor * own if need[0] else none
        dy = factor * (weight.T @ xf) if need[1] else none
        return dx.to(x.dtype), dy.to(x.dtype), (xf * own).sum() if need[2] else none
