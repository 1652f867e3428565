"""The op that takes some tokens of each sample, and its gradient.

    out_{n,k} = x_{n, ids_{n,k}}                                              x (N, L, D), ids (N, K)
    dx_{n,l}  = sum_{k : ids_{n,k} = l} dout_{n,k}        in the order of k, in float32 for 16-bit tokens: same bits each time

The forward moves 2 N K D elements, the backward N (K + L) D. ``torch.gather`` also reads an index of 8 bytes for each element,
and its gradient needs zeros first and atomic additions.
"""

import torch
from torch import Tensor

from ._patches import check_floats, check_ids, dense_rows, trackable
from ._register import define_op, first_derivative_only, refuse_transforms, save, saved

_fwd = define_op(
    "gather_tokens_fwd",
    "(Tensor x, Tensor ids) -> Tensor",
    lambda x, ids: x.new_empty((*ids.shape, x.shape[2])),
    "gather_tokens",
)
_bwd = define_op(
    "gather_tokens_bwd",
    "(Tensor dout, Tensor ids, SymInt length) -> Tensor",
    lambda dout, ids, length: dout.new_empty((dout.shape[0], length, dout.shape[2])),
    "gather_tokens",
)


def scatter_rows(dout: Tensor, ids: Tensor, length: int) -> Tensor:
    """Adds dout (N, K, D) up by ids (N, K) into (N, length, D), zeros elsewhere."""
    return _bwd(dense_rows(dout), ids, length)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ids):
        save(ctx, ids)
        ctx.length = x.shape[1]
        return _fwd(dense_rows(x), ids)

    @staticmethod
    @first_derivative_only("gather_tokens")
    def backward(ctx, dout):
        (ids,) = saved(ctx)
        return scatter_rows(dout, ids, ctx.length), None


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Takes the tokens of each sample that ``ids`` names: ``out[n, k] = x[n, ids[n, k]]``, as ``get_at_index`` of lightly does.

    Args:
        x: (N, L, D) float32, bfloat16, float16 or float64. A slice such as ``x[:, 1:]`` is read in place.
        ids: (N, K) int64 in [0, L), in any order, any number of times; K may be 0. On a GPU an id out of range gives a row of
            zeros.

    Returns:
        (N, K, D) in the dtype of ``x``. It can be differentiated once, and its gradient is exact for repeated ids too.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: The call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> import torch
        >>> from fastssl.functional import gather_tokens
        >>> x = torch.tensor([[[0.0], [10.0], [20.0]]])  # N = 1, L = 3, D = 1
        >>> gather_tokens(x, torch.tensor([[2, 0]])).flatten()
        tensor([20.,  0.])
    """
    op = "gather_tokens"
    refuse_transforms(op, x)
    check_floats(op, "x", x, "N, L, D")
    check_ids(op, "ids", ids, x.shape[0], "N, K", x.shape[1], "x", x)
    return take_tokens(x, ids)


def take_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """``gather_tokens`` of arguments that need no checks."""
    return _Gather.apply(x, trackable(ids.contiguous()))
