"""Row and column log-sum-exp of one similarity matrix in plain PyTorch.

    s_ij = scale * <x_i, y_j>,  -inf where x_id_i = y_id_j               x (N, D), y (M, D)
    row_i = log sum_j exp(s_ij)        column_j = log sum_i exp(s_ij)
    W_ij = drow_i p_ij + dcolumn_j q_ij,  p the softmax of each row, q of each column
    dx = scale W y,  dy = scale W^T x,  dscale = sum_ij W_ij <x_i, y_j>

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.ops._operands import Similarity, factor_of
from fastssl.ops._register import gradient_dtype

from .similarity import logits, rank_of, softmax, state_of


def similarity_cross_fwd(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
    keep_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """row (N,), column (M,), rank (N,) or (0,), kept logits (keep_rows, M), state (2, N + M) and peak (N + M,)."""
    with torch.autocast(x.device.type, enabled=False):
        s = logits(Similarity(x, y, scale, scale_factor, x_id, y_id))[2]
        (rows, row_peak), (columns, column_peak) = state_of(s), state_of(s.T)
        state, peak = torch.cat([rows, columns], 1), torch.cat([row_peak, column_peak])
        return torch.logsumexp(s, dim=1), torch.logsumexp(s, dim=0), rank_of(s, threshold), s[:keep_rows].clone(), state, peak


def similarity_cross_bwd(
    drow: Tensor,  # (N,)
    dcolumn: Tensor,  # (M,)
    state: Tensor,  # (2, N + M)
    peak: Tensor,  # (N + M,)
    kept: Tensor,  # (R, M), not read: all logits are made again
    x: Tensor,
    y: Tensor,
    scale: float,
    scale_factor: Tensor | None,
    x_id: Tensor | None,
    y_id: Tensor | None,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dy and dscale; a gradient that ``need`` does not ask for is an empty tensor."""
    with torch.autocast(x.device.type, enabled=False):
        xf, yf, s = logits(Similarity(x, y, scale, scale_factor, x_id, y_id))
        n = len(x)
        weight = drow[:, None] * softmax(s, state[:, :n], peak[:n])
        weight = weight + (dcolumn[:, None] * softmax(s.T, state[:, n:], peak[n:])).T
        factor = factor_of(scale, scale_factor, xf.dtype)
        own = weight @ yf
        none = xf.new_empty(0)
        dx = factor * own if need[0] else none
        dy = factor * (weight.T @ xf) if need[1] else none
        like = gradient_dtype(x)
        return dx.to(like), dy.to(like), (xf * own).sum() if need[2] else none
