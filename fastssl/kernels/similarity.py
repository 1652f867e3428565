"""The masked similarity log-sum-exp in Triton: the functions that serve the ops of ``ops/similarity.py`` on a GPU.

    s_ij  = scale <x_i, y_j> + y_bias_j,  -inf where x_id_i = y_id_j                                 x (N, D), y (M, D)
    lse_i = log sum_j exp(s_ij)             mean_i = sum_j p_ij y_j,  p the softmax of each row

``similarity_forward`` and ``similarity_backward`` hold the tile kernels. The forward hands the backward of each row the largest
logit t and the sum S of 2^(s2 - t), s2 = log2(e) s. Where a tile cannot hold a row (D > 256, float32 D > 128) ``similarity_wide``
takes over. Arguments are flat here, as the dispatcher hands them over, and travel on as one record, ``Similarity``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.ops._operands import Similarity, SimilarityArguments

from . import similarity_wide as wide
from .host.device import on_device
from .host.tensors import new
from .similarity_backward import row_owner
from .similarity_forward import forward
from .tiles.config import tile_fits
from .tiles.layout import in_precision, laid_out, precision_of
from .tiles.merge import Gradients
from .tiles.terms import Terms, row_terms


def similarity_fwd(
    x: Tensor,  # (N, D)
    y: Tensor | None,  # (M, D); None: x
    scale: float,
    scale_factor: Tensor | None,  # one element
    x_id: Tensor | None,  # (N,)
    y_id: Tensor | None,  # (M,)
    y_bias: Tensor | None,  # (M,)
    threshold: Tensor | None,  # (N,)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse (N,), rank, int32 (N,) or without a threshold (0,), state (2, N) and peak (N,)."""
    with on_device(x):
        results = forward(SimilarityArguments(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold), False)
        assert results.rank is not None
        return results.lse, results.rank, results.state, results.peak


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
    """lse (N,) and mean (N, D), float32, and rank as ``similarity_fwd``."""
    with on_device(x):
        results = forward(SimilarityArguments(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold), True)
        assert results.mean is not None and results.rank is not None
        return results.lse, results.mean, results.rank


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
    symmetric = y is None
    operands = laid_out(SimilarityArguments(x, y, scale, scale_factor, x_id, y_id, y_bias).operands())
    x, y, y_bias = operands.x, operands.y, operands.y_bias
    need_x, need_y, need_bias, need_scale = need[0], need[1] and not symmetric, need[2] and y_bias is not None, need[3]
    precision = precision_of(x)
    with on_device(x):
        dx = new(x, x.dtype, x.shape)[0] if need_x else None
        dy = new(x, x.dtype, y.shape)[0] if need_y else None
        dbias = torch.empty(y_bias.shape, dtype=y_bias.dtype, device=x.device) if y_bias is not None and need_bias else None
        if tile_fits(x.shape[0], y.shape[0], x.shape[1], x.dtype, precision):
            dots_of_x = symmetric or need_x or not (need_y or need_bias)
            dots = _new_dots(x if dots_of_x else y) if need_scale else None
            _sweeps(row_terms(state, dlse, x.dtype), in_precision(operands, precision), symmetric, Gradients(dx, dy, dbias, dots))
        else:
            dots = _new_dots(x if need_x or not need_y else y) if need_scale else None
            with torch.autocast(x.device.type, enabled=False):
                wide.backward(dlse, state, peak, operands, symmetric, Gradients(dx, dy, dbias, dots))
    (empty,), (none,) = new(x, torch.float32, (0,)), new(x, x.dtype, (0,))
    return (
        none if dx is None else dx,
        none if dy is None else dy,
        dbias if dbias is not None else empty if y_bias is None else empty.to(y_bias.dtype),
        empty if dots is None else dots.sum(),
    )


def _new_dots(rows: Tensor) -> Tensor:
    return torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)


def _sweeps(terms: Terms, operands: Similarity, symmetric: bool, gradients: Gradients) -> None:
    """Fills the gradients by one sweep or two: the first owns the rows of x, the second those of y. ``terms`` are of x alone."""
    dx, dy, dbias, dots = gradients
    if symmetric:
        both = Terms(terms.of_x, terms.of_x, terms.stats)
        if dx is not None or dbias is not None or dots is not None:
            row_owner(operands, both, dx, dbias, dots, 0.5)
        return
    sweep_y = dy is not None or dbias is not None
    sweep_x = dx is not None or (dots is not None and not sweep_y)
    if sweep_x:
        row_owner(operands, terms, dx, None, dots)
    if sweep_y:
        row_owner(operands.swapped(), terms.swapped(), dy, dbias, None if sweep_x else dots)
