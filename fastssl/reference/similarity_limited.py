"""The masked similarity log-sum-exp below a limit of each row, in plain PyTorch.

    s_ij  = scale * <x_i, y_j> + y_bias_j,  -inf where x_id_i = y_id_j and where s_ij > limit_i         x (N, D), y (M, D)
    lse_i = log sum_j exp(s_ij)

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.ops._operands import Similarity, factor_of
from fastssl.ops._register import gradient_dtype

from .similarity import logits, rank_of, softmax, state_of


def _limited(operands: Similarity, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x and y in the accumulator's dtype, and s (N, M) with -inf above the limits (N,)."""
    x, y, s = logits(operands)
    return x, y, s.masked_fill(s > limit.to(s.dtype)[:, None], float("-inf"))


def similarity_limited_fwd(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    y_bias: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
    limit: Tensor,  # (N,)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse (N,), rank (N,) or without a threshold (0,), state (2, N) and peak (N,)."""
    with torch.autocast(x.device.type, enabled=False):
        s = _limited(Similarity(x, y, scale, scale_factor, x_id, y_id, y_bias), limit)[2]
        return torch.logsumexp(s, dim=1), rank_of(s, threshold), *state_of(s)


def similarity_limited_bwd(
    dlse: Tensor,  # (N,)
    state: Tensor,  # (2, N)
    peak: Tensor,  # (N,)
    x: Tensor,
    y: Tensor,
    scale: float,
    scale_factor: Tensor | None,
    x_id: Tensor | None,
    y_id: Tensor | None,
    y_bias: Tensor | None,
    limit: Tensor,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dy, dbias and dscale; a gradient that ``need`` does not ask for is an empty tensor."""
    with torch.autocast(x.device.type, enabled=False):
        xf, yf, s = _limited(Similarity(x, y, scale, scale_factor, x_id, y_id, y_bias), limit)
        weight = dlse[:, None] * softmax(s, state, peak)
        factor = factor_of(scale, scale_factor, xf.dtype)
        none = xf.new_empty(0)
        own = weight @ yf
        dx = factor * own if need[0] else none
        dy = factor * (weight.T @ xf) if need[1] else none
        dbias = weight.sum(0) if need[2] else none
        dscale = (xf * own).sum() if need[3] else none
        like = gradient_dtype(x)
        return dx.to(like), dy.to(like), dbias if y_bias is None else dbias.to(y_bias.dtype), dscale
