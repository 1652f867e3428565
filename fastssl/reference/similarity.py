"""The masked similarity log-sum-exp in plain PyTorch.

    s_ij  = scale * <x_i, y_j> + y_bias_j                                x (N, D), y (M, D)
    lse_i = log sum_{j : x_id_i != y_id_j} exp(s_ij)

Stores the (N, M) matrix: the oracle of every kernel, and the fallback where none is built. ``y=None`` means ``y = x``.
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


def effective_scale(scale: float, scale_factor: Tensor | None, dtype: torch.dtype) -> float | Tensor:
    return scale if scale_factor is None else scale * scale_factor.reshape(()).to(dtype)


def _logits(x, y, scale, scale_factor, x_id, y_id, y_bias):
    dtype = accumulator_dtype(x)
    x, y = x.to(dtype), (x if y is None else y).to(dtype)
    s = effective_scale(scale, scale_factor, dtype) * (x @ y.T)
    if y_bias is not None:
        s = s + y_bias.to(dtype)
    if x_id is not None:
        s = s.masked_fill(x_id[:, None] == (x_id if y_id is None else y_id)[None, :], float("-inf"))
    return x, y, s


def _state(s):
    """What the backward is handed of s (N, M): (2, N), the largest logit of each row and the sum of exp(s - largest), and where
    that logit lies, (N,) int32. In a row whose every column is excluded: -inf, 0, and any place."""
    top, peak = s.max(1)
    total = torch.exp(s - top.masked_fill(top == float("-inf"), 0.0)[:, None]).sum(1)
    return torch.stack([top, total]), peak.to(torch.int32)


def _softmax(s, state, peak):
    """p (N, M) = min(1, exp(s - top)) / total, 0 in a row whose every column is excluded.

    s was computed anew and need not have the bits that made the state; at logits of 1e8 that would give the weight of a row that
    one logit dominates any value. That logit is the one at ``peak``: it gets the value it had.
    """
    top, total = state[0, :, None], state[1, :, None]
    at_peak = torch.arange(s.shape[1], device=s.device) == peak[:, None]
    s = torch.where(at_peak, top, s)
    empty = total == 0
    p = torch.exp((s - top.masked_fill(empty, float("inf"))).clamp_max(0.0))
    return p / total.masked_fill(empty, 1.0)


def _rank(s, threshold):
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # lse (N,), rank (N,) or (0,), state (2, N), peak (N,)
    with torch.autocast(x.device.type, enabled=False):
        s = _logits(x, y, scale, scale_factor, x_id, y_id, y_bias)[2]
        return torch.logsumexp(s, dim=1), _rank(s, threshold), *_state(s)


def similarity_one_pass(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold) -> tuple[Tensor, Tensor, Tensor]:
    """lse (N,), mean (N, D), mean_i = sum_j p_ij y_j: all that the gradient of x needs, and rank (N,) or (0,)."""
    with torch.autocast(x.device.type, enabled=False):
        _, y, s = _logits(x, y, scale, scale_factor, x_id, y_id, y_bias)
        lse = torch.logsumexp(s, dim=1)
        return lse, _softmax(s, *_state(s)) @ y, _rank(s, threshold)


def similarity_bwd(dlse, state, peak, x, y, scale, scale_factor, x_id, y_id, y_bias, need) -> tuple[Tensor, ...]:
    """(dx, dy, dbias, dscale); a gradient that ``need`` does not ask for is an empty tensor."""
    with torch.autocast(x.device.type, enabled=False):
        xf, yf, s = _logits(x, y, scale, scale_factor, x_id, y_id, y_bias)
        weight = dlse[:, None] * _softmax(s, state, peak)
        factor = effective_scale(scale, scale_factor, xf.dtype)
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
        like = x.dtype
        return dx.to(like), dy.to(like), dbias if y_bias is None else dbias.to(y_bias.dtype), dscale
