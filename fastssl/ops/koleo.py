"""Contract of the ops of KoLeo with p = 2: rows at unit length, and what a row and its nearest neighbours give.

    x_i        = z_i / max(|z_i|, eps)                                         z (N, D), x in float32 (float64 for float64)
    ids_{i,t}  = the neighbours of row i                                       (N, k); ``nearest_in_groups`` finds them
    term_{i,t} = -log(d_{i,t} + eps),    d_{i,t} = |x_i - x_{ids_{i,t}} + eps|_2
    c_{i,t}    = -dterm_{i,t} / ((d_{i,t} + eps) d_{i,t}),    0 where d = 0
    b_r        = sum_t c_{r,t} - sum_{(i,t): ids_{i,t} = r} c_{i,t}
    G_r        = sum_t c_{r,t} (x_r - x_{ids_{r,t}}) - sum_{(i,t): ids_{i,t} = r} c_{i,t} (x_i - x_r) + eps b_r
    dz_r       = (G_r - x_r <x_r, G_r>) / |z_r|,    without the second term where |z_r| < eps

The difference is taken entry by entry, not from inner products, since near neighbours would cancel there. The factors c of two rows
that are equal are as large as 1 / (D eps^2), and cancel only in b, which is therefore a sum of its own, in float64. A row of the
gradient is one sum, its own terms first and then those of the rows that it is a neighbour of, in their order: no atomics, same bits
each time.
Bytes, in elements: forward N D read and N D written, then (1 + k) N D read; backward (1 + 2 k) N D read, N D written. FLOP: 3 N D,
4 k N D, and (6 k + 6) N D, so the memory decides. The eager form makes some fifteen passes forward and backward.
"""

import torch
from torch import Tensor

from ._register import define_op, first_derivative_only, new_accumulator, refuse_transforms, save, saved
from .nearest_in_groups import nearest_in_groups

_rows = define_op(
    "koleo_rows",
    "(Tensor z, float eps) -> (Tensor, Tensor)",
    lambda z, eps: (new_accumulator(z, *z.shape), new_accumulator(z, z.shape[0])),
    "koleo",
)
_fwd = define_op(
    "koleo_fwd",
    "(Tensor x, Tensor ids, float eps) -> (Tensor, Tensor)",
    lambda x, ids, eps: (x.new_empty(ids.shape), x.new_empty(ids.shape)),
    "koleo",
)
# With ``norm`` (M,) the gradient is that of z, otherwise that of x. The ids of a row are within its group of ``size`` rows.
_bwd = define_op(
    "koleo_bwd",
    "(Tensor dterms, Tensor x, Tensor ids, Tensor distance, Tensor? norm, float eps, SymInt size, ScalarType dtype) -> Tensor",
    lambda dterms, x, ids, distance, norm, eps, size, dtype: x.new_empty(x.shape, dtype=dtype),
    "koleo",
)


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, topk, size, eps):
        x, norm = _rows(z, eps)
        ids = nearest_in_groups(x, topk, size)
        terms, distance = _fwd(x, ids, eps)
        save(ctx, x, norm, ids, distance, terms)
        ctx.how = eps, size, z.dtype
        return terms

    @staticmethod
    @first_derivative_only("koleo")
    def backward(ctx, dterms):
        x, norm, ids, distance, _ = saved(ctx)
        return _bwd(dterms, x, ids, distance, norm, *ctx.how), None, None, None


class _GivenTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, near, eps):
        count, topk, width = near.shape
        both = torch.cat([x, near.view(-1, width)])
        ids = torch.arange(count, len(both), device=x.device).view(count, topk)
        terms, distance = _fwd(both, ids, eps)
        save(ctx, both, ids, distance, terms)
        ctx.eps = eps
        return terms

    @staticmethod
    @first_derivative_only("koleo")
    def backward(ctx, dterms):
        both, ids, distance, _ = saved(ctx)
        gradient = _bwd(dterms, both, ids, distance, None, ctx.eps, len(both), both.dtype)
        return gradient[: len(ids)], gradient[len(ids) :].view(*ids.shape, -1), None


def koleo_terms(z: Tensor, topk: int, size: int, eps: float) -> Tensor:
    """The terms (N, topk) of rows z (N, D), whose neighbours are among the ``size`` consecutive rows of their group."""
    refuse_transforms("koleo", z)
    return _Terms.apply(z, topk, size, eps)


def koleo_terms_of(x: Tensor, near: Tensor, eps: float) -> Tensor:
    """The terms (N, k) of unit rows x (N, D) and their neighbours near (N, k, D), float32 or float64."""
    refuse_transforms("koleo", x, near)
    return _GivenTerms.apply(x, near, eps)
