"""Row and column log-sum-exp of one similarity matrix in plain PyTorch.

    s_ij = scale * <x_i, y_j>,  -inf where x_id_i = y_id_j               x (N, D), y (M, D)
    row_i = log sum_j exp(s_ij)        column_j = log sum_i exp(s_ij)
    W_ij = drow_i p_ij + dcolumn_j q_ij,  p the softmax of each row, q of each column
    dx = scale W y,  dy = scale W^T x,  dscale = sum_ij W_ij <x_i, y_j>

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built.
"""

import torch
from torch import Tensor

from .similarity import _logits, _rank, _softmax, _state, effective_scale


def similarity_cross_fwd(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
    keep_rows: int,
) -> tuple[Tensor, ...]:  # row (N,), column (M,), rank (N,) or (0,), kept (keep_rows, M), state (2, N + M), peak (N + M,)
    with torch.autocast(x.device.type, enabled=False):
        s = _logits(x, y, scale, scale_factor, x_id, y_id, None)[2]
        state, peak = (torch.cat(parts, -1) for parts in zip(_state(s), _state(s.T), strict=True))
        return torch.logsumexp(s, dim=1), torch.logsumexp(s, dim=0), _rank(s, threshold), s[:keep_rows].clone(), state, peak


def similarity_cross_bwd(
    drow, dcolumn, state, peak, kept, x, y, scale, scale_factor, x_id, y_id, need
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dy, dscale); a gradient that ``need`` does not ask for is an empty tensor. The kept logits are made again."""
    with torch.autocast(x.device.type, enabled=False):
        xf, yf, s = _logits(x, y, scale, scale_factor, x_id, y_id, None)
        n = len(x)
        weight = drow[:, None] * _softmax(s, state[:, :n], peak[:n])
        weight = weight + (dcolumn[:, None] * _softmax(s.T, state[:, n:], peak[n:])).T
        factor = effective_scale(scale, scale_factor, xf.dtype)
        own = weight @ yf
        none = xf.new_empty(0)
        dx = factor * own if need[0] else none
        dy = factor * (weight.T @ xf) if need[1] else none
        return dx.to(x.dtype), dy.to(x.dtype), (xf * own).sum() if need[2] else none
