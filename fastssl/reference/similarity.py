"""The masked similarity log-sum-exp in plain PyTorch.

    s_ij  = scale * <x_i, y_j> + y_bias_j                                x (N, D), y (M, D)
    lse_i = log sum_{j : x_id_i != y_id_j} exp(s_ij)

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built. ``y=None`` means ``y = x``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops._operands import Similarity, SimilarityArguments, factor_of
from fastssl.ops._register import gradient_dtype


def logits(operands: Similarity) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) and y (M, D) in the accumulator's dtype, and s (N, M)."""
    x, y, scale, scale_factor, x_id, y_id, y_bias, _ = operands
    dtype = accumulator_dtype(x)
    x, y = x.to(dtype), y.to(dtype)
    s = factor_of(scale, scale_factor, dtype) * (x @ y.T)
    if y_bias is not None:
        s = s + y_bias.to(dtype)
    if x_id is not None and y_id is not None:
        s = s.masked_fill(x_id[:, None] == y_id[None, :], float("-inf"))
    return x, y, s


def state_of(s: Tensor) -> tuple[Tensor, Tensor]:
    """What the backward is handed of s (N, M): each row's largest logit and its sum of exp(s - largest), (2, N), and the column of
    that logit, (N,) int32. A row whose every column is excluded has -inf, 0 and any column."""
    top, peak = s.max(1)
    total = torch.exp(s - top.masked_fill(top == float("-inf"), 0.0)[:, None]).sum(1)
    return torch.stack([top, total]), peak.to(torch.int32)


def softmax(s: Tensor, state: Tensor, peak: Tensor) -> Tensor:
    """p (N, M) = min(1, exp(s - top)) / total, 0 in a row whose every column is excluded.

    s was computed anew and need not have the bits that made the state. At logits of 1e8 another last bit is a difference of 8, so
    that a row which one logit dominates could get any weight. That logit is the one at ``peak``: it gets the value that it had.
    """
    top, total = state[0, :, None], state[1, :, None]
    at_peak = torch.arange(s.shape[1], device=s.device) == peak[:, None]
    s = torch.where(at_peak, top, s)
    empty = total == 0
    p = torch.exp((s - top.masked_fill(empty, float("inf"))).clamp_max(0.0))
    return p / total.masked_fill(empty, 1.0)


def rank_of(s: Tensor, threshold: Tensor | None) -> Tensor:
    """int32 (N,): how many logits of each row lie above its threshold; (0,) without one."""
    if threshold is None:
        return s.new_empty(0, dtype=torch.int32)
    return (s > threshold.to(s.dtype)[:, None]).sum(1, dtype=torch.int32)


def similarity_fwd(
    x: Tensor,  # (N, D)
    y: Tensor | None,  # (M, D)
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    y_bias: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse (N,), rank (N,) or without a threshold (0,), state (2, N) and peak (N,)."""
    with torch.autocast(x.device.type, enabled=False):
        s = logits(SimilarityArguments(x, y, scale, scale_factor, x_id, y_id, y_bias).operands())[2]
        return torch.logsumexp(s, dim=1), rank_of(s, threshold), *state_of(s)


def similarity_one_pass(
    x: Tensor,
    y: Tensor | None,
    scale: float,
    scale_factor: Tensor | None,
    x_id: Tensor | None,
    y_id: Tensor | None,
    y_bias: Tensor | None,
    threshold: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """lse (N,), mean (N, D) with mean_i = sum_j p_ij y_j, which is all that the gradient of x needs, and rank (N,) or (0,)."""
    with torch.autocast(x.device.type, enabled=False):
        _, y, s = logits(SimilarityArguments(x, y, scale, scale_factor, x_id, y_id, y_bias).operands())
        return torch.logsumexp(s, dim=1), softmax(s, *state_of(s)) @ y, rank_of(s, threshold)


def similarity_bwd(
    dlse: Tensor,  # (N,)
    state: Tensor,  # (2, N)
    peak: Tensor,  # (N,)
    x: Tensor,
    y: Tensor | None,
    scale: float,
    scale_factor: Tensor | None,
    x_id: Tensor | None,
    y_id: Tensor | None,
    y_bias: Tensor | None,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dy, dbias and dscale; a gradient that ``need`` does not ask for is an empty tensor."""
    with torch.autocast(x.device.type, enabled=False):
        xf, yf, s = logits(SimilarityArguments(x, y, scale, scale_factor, x_id, y_id, y_bias).operands())
        weight = dlse[:, None] * softmax(s, state, peak)
        factor = factor_of(scale, scale_factor, xf.dtype)
        none = xf.new_empty(0)
        own = weight @ yf
        if y is None:
            dx = factor * (own + weight.T @ xf) if need[0] else none
            dy = none
        else:
            dx = factor * own if need[0] else none
            dy = factor * (weight.T @ xf) if need[1] else none
        dbias = weight.sum(0) if need[2] else none
        dscale = (xf * own).sum() if need[3] else none
        like = gradient_dtype(x)
        return dx.to(like), dy.to(like), dbias if y_bias is None else dbias.to(y_bias.dtype), dscale
