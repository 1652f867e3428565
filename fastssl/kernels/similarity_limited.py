"""The masked similarity log-sum-exp below a limit of each row: what serves the ops of ``ops/similarity_limited.py`` on a GPU.

    s_ij  = scale <x_i, y_j> + y_bias_j,  -inf where x_id_i = y_id_j and where s_ij > limit_i        x (N, D), y (M, D)
    lse_i = log sum_j exp(s_ij)

``similarity_chunked`` computes it at every width: the vendor's products on chunks that stay in L2, with the limit in the kernel
that reads a chunk. Forward and backward multiply the same chunks, so that a logit has the same bits both times unless the vendor's
library chooses otherwise. The largest logit of each row, which the backward keeps whatever the limit, is known by its column, which
tiles do not find.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.ops._operands import Similarity

from . import similarity_chunked as chunked
from .host.device import on_device
from .host.tensors import new
from .tiles.layout import dense, laid_out
from .tiles.merge import Gradients, Results


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
    """lse (N,), rank, int32 (N,) or without a threshold (0,), state (2, N) and peak (N,)."""
    operands = laid_out(Similarity(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold))
    n = len(x)
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        lse, state = new(x, torch.float32, (n,), (2, n))
        peak, rank = new(x, torch.int32, (n,), (0 if threshold is None else n,))
        chunked.forward(operands, Results(lse, state, peak, rank=rank), dense(limit))
    return lse, rank, state, peak


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
    operands = laid_out(Similarity(x, y, scale, scale_factor, x_id, y_id, y_bias))
    need_x, need_y, need_bias, need_scale = need
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        dx = new(x, x.dtype, x.shape)[0] if need_x else None
        dy = new(x, x.dtype, y.shape)[0] if need_y else None
        dbias = torch.empty(y_bias.shape, dtype=y_bias.dtype, device=x.device) if y_bias is not None and need_bias else None
        rows = len(x if need_x or not need_y else y)
        dots = new(x, torch.float32, (rows,))[0] if need_scale else None
        chunked.backward(dlse, state, peak, operands, False, Gradients(dx, dy, dbias, dots), dense(limit))
        (none,), (empty,) = new(x, x.dtype, (0,)), new(x, torch.float32, (0,))
        return (
            none if dx is None else dx,
            none if dy is None else dy,
            dbias if dbias is not None else empty if y_bias is None else empty.to(y_bias.dtype),
            empty if dots is None else dots.sum(),
        )
