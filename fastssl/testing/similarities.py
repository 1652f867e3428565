"""Calls and eager forms of the ops on similarities, for the table in ``cases.py``.

``two_sided``, ``symmetric`` and ``one_pass`` make a call of the three schedules from ``similarity_lse`` or from its eager form.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops.sigmoid_pair import sigmoid_pair
from fastssl.ops.similarity_cross import similarity_cross
from fastssl.ops.similarity_limited import similarity_limited

from . import contrastive
from .inputs import in_seven_bits

Call = Callable[..., Tensor]


def eager_lse(x, y, scale=1.0, x_id=None, y_id=None, y_bias=None) -> Tensor:
    """``similarity_lse`` in eager PyTorch: the N x M matrix, then ``torch.logsumexp``."""
    s = scale * (x @ y.T).to(accumulator_dtype(x))
    if y_bias is not None:
        s = s + y_bias
    if x_id is not None:
        s = s.masked_fill(x_id[:, None] == y_id[None, :], -math.inf)
    return torch.logsumexp(s, 1)


def thirds(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Ids that exclude a third of the columns from each row; N and M may differ."""
    rows, columns = (torch.arange(len(t), device=t.device) % 3 for t in (x, y))
    return {"x_id": rows, "y_id": columns}


def two_sided(lse: Call) -> Call:
    """The call with gradients of rows, columns, bias and scale."""
    return lambda x, y, y_bias, scale: lse(x, y, scale=scale, y_bias=y_bias, **thirds(x, y))


def symmetric(lse: Call) -> Call:
    """The call in which the rows are the columns too, as in NT-Xent: ids exclude the row itself and its positive."""

    def call(x, scale):
        ids = torch.arange(len(x), device=x.device) % max(1, len(x) // 2)
        return lse(x, x, scale=scale, x_id=ids, y_id=ids)

    return call


def one_pass(lse: Call) -> Call:
    """The call whose columns need no gradient, as those of a queue: a constant that is made from the width of the rows."""

    def call(x, scale, columns=37):
        angles = torch.arange(columns * x.shape[1], device=x.device, dtype=torch.float64).reshape(columns, -1) ** 2
        y = in_seven_bits(F.normalize(angles.sin(), dim=1)).to(x.dtype)
        return lse(x, y, scale=scale, x_id=torch.arange(len(x), device=x.device), y_id=torch.arange(columns, device=x.device))

    return call


def gap_limits(s: Tensor) -> Tensor:
    """A limit (N,) for each row of s (N, M): the middle of the widest gap in the upper half of its logits, in the dtype of s."""
    upper = s.sort(1).values[:, s.shape[1] // 2 :]
    if upper.shape[1] < 2:
        return upper[:, 0] + 1.0
    at = upper.diff(dim=1).argmax(1, keepdim=True)
    return (upper.gather(1, at) + upper.gather(1, at + 1))[:, 0] / 2


def _limits(x: Tensor, y: Tensor, y_bias: Tensor, scale: Tensor) -> Tensor:
    """Limits in float64 that are far from all logits, as constants."""
    x, y, y_bias, scale = (t.detach().double() for t in (x, y, y_bias, scale))
    return gap_limits(scale * (x @ y.T) + y_bias)


def ours_limited(x, y, y_bias, scale) -> Tensor:
    """The log-sum-exp of the columns below the limits."""
    x_id, y_id = thirds(x, y).values()
    return similarity_limited(x, y, _limits(x, y, y_bias, scale), scale=scale, x_id=x_id, y_id=y_id, y_bias=y_bias)[0]


def eager_limited(x, y, y_bias, scale) -> Tensor:
    """The same from the matrix; which columns are left is decided in float64, so that every dtype leaves the same ones."""
    wide = scale.detach().double() * (x.detach().double() @ y.detach().double().T) + y_bias.detach().double()
    ids = thirds(x, y)
    out = (wide > _limits(x, y, y_bias, scale)[:, None]) | (ids["x_id"][:, None] == ids["y_id"])
    s = scale * (x @ y.T).to(accumulator_dtype(x)) + y_bias
    return torch.logsumexp(s.masked_fill(out, -math.inf), 1)


def ours_cross(x, y, scale) -> Tensor:
    """The log-sum-exp of rows, then that of columns, from one sweep."""
    ids = thirds(x, y)
    row, column, _ = similarity_cross(x, y, scale=scale, x_id=ids["x_id"], y_id=ids["y_id"])
    return torch.cat([row, column])


def eager_cross(x, y, scale) -> Tensor:
    """The log-sum-exp of rows, then that of columns, from two matrices."""
    ids = thirds(x, y)
    swapped = {"x_id": ids["y_id"], "y_id": ids["x_id"]}
    return torch.cat([eager_lse(x, y, scale, **ids), eager_lse(y, x, scale, **swapped)])


def _weights(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Ids that make a third of the pairs positive, and weights that differ by row and column."""
    rows, columns = (0.2 + torch.arange(len(t), device=t.device) % 5 / 5.0 for t in (x, y))
    return thirds(x, y) | {"x_weight": rows, "y_weight": columns}


def ours_sigmoid(x, y, scale, bias) -> Tensor:
    """The weighted sigmoid loss of all pairs."""
    return sigmoid_pair(x, y, scale=scale, bias=bias, **_weights(x, y))


def eager_sigmoid(x, y, scale, bias) -> Tensor:
    """``sigmoid_pair`` in eager PyTorch. Autograd differentiates it, while the reference has formulas for its gradients."""
    given = _weights(x, y)
    s = contrastive.logits(x, y, scale) + bias
    same = given["x_id"][:, None] == given["y_id"]
    weight = torch.where(same, (given["x_weight"][:, None] + given["y_weight"]).to(s.dtype), 1.0)
    return (weight * F.softplus(torch.where(same, -s, s), threshold=40.0)).sum()
