"""Contract of the ops of InfoNCE over sampled negatives: each query against the few rows of a table that an index names.

    x_i = c_i / max(|c_i|, eps)   y_k = q_k / max(|q_k|, eps)        c (M, D), q (K, D), index (M, E): column 0 is the positive
    s_ie = <x_i, y_{index_ie}>    u_ie = scale s_ie                  -inf where e > 0 and q_{index_ie} = q_{index_i0} in all entries
    L_i = log sum_e exp(u_ie) - u_i0        p_ie = exp(u_ie - lse_i)
    slope_i = dL_i / dscale = sum_e p_ie s_ie - s_i0
    G_i = dL_i / dc_i = (scale / |c_i|) (sum_e p_ie y_{index_ie} - y_i0 - slope_i x_i)
    w_ie = dL_i scale (p_ie - [e = 0])
    dq_k = (sum w_ie x_i - y_k sum w_ie s_ie) / |q_k|, both over the (i, e) with index_ie = k

A row shorter than eps is divided by eps and loses the last term. The forward keeps s (M, E), not the rows: it makes G in the same
pass, while the rows of a query are near, and the backward of c is one product with dL. The backward of q owns the rows of q: it
sums the queries of a row in the order of (i, e), so the same bits come each time, without atomics.
Bytes, in elements: forward M E D read of the table and M (D + E) written, of which the caches serve the most; backward M E D read
of the queries. FLOP: 2 M E D for s, as much for G, and as much for dq. The eager form writes the rows (M, E, D) and their products,
and indexes their gradient back: some ten passes over M E D.
"""

import torch
from torch import Tensor

from ._register import define_op, first_derivative_only, new_accumulator, refuse_transforms, save, saved

#: What lengths are clamped at, as in ``torch.cosine_similarity``.
EPS = 1e-8


def _fake_fwd(query, keys, index, scale, eps, gradient):
    rows = [new_accumulator(query, query.shape[0]) for _ in range(3)]
    width = query.shape[1] if gradient else 0
    return *rows, new_accumulator(query, *index.shape), new_accumulator(query, query.shape[0], width)


_fwd = define_op(
    "sampled_info_nce_fwd",
    "(Tensor query, Tensor keys, Tensor index, Tensor scale, float eps, bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_fwd,
    "sampled_info_nce",
)
_bwd = define_op(
    "sampled_info_nce_bwd",
    "(Tensor dloss, Tensor query, Tensor keys, Tensor index, Tensor scale, Tensor lse, Tensor cosines, float eps) -> Tensor",
    lambda dloss, query, keys, *_: keys.new_empty(keys.shape),
    "sampled_info_nce",
)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, keys, index, scale, gradient):
        loss, slope, lse, cosines, dquery = _fwd(query, keys, index, scale, EPS, gradient)
        save(ctx, query, keys, index, scale, slope, lse, cosines, dquery)
        return loss

    @staticmethod
    @first_derivative_only("sampled_info_nce")
    def backward(ctx, dloss):
        query, keys, index, scale, slope, lse, cosines, dquery = saved(ctx)
        need = ctx.needs_input_grad
        return (
            (dloss[:, None] * dquery).to(query.dtype) if need[0] else None,
            _bwd(dloss.contiguous(), query, keys, index, scale, lse, cosines, EPS) if need[1] else None,
            None,
            (dloss * slope).sum().reshape(scale.shape) if need[3] else None,
            None,
        )


def sampled_losses(query: Tensor, keys: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """The losses (M,) of queries (M, D), a table (K, D), index (M, E) int64 and a scale () in the dtype of the sums; checked."""
    refuse_transforms("sampled_info_nce", query, keys, scale)
    return _Losses.apply(query, keys, index, scale, query.requires_grad and torch.is_grad_enabled())
