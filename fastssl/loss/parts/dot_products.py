"""Unit rows, and inner products of rows that need no N x M sweep."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops.normalize import EPS, normalize_pair


class _Rounded(torch.autograd.Function):
    """The values of x as ``dtype`` holds them, in the dtype of x. Its gradient is not rounded."""

    @staticmethod
    def forward(ctx, x, dtype):
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def wide_rows(x: Tensor, normalize: bool) -> Tensor:
    """x (..., D), brought to unit length along D if ``normalize``: the values that its dtype holds, in ``accumulator_dtype``.

    So the gradients of all that is made of the rows are added before they are rounded.
    """
    wide = x.to(accumulator_dtype(x))
    if not normalize:
        return wide
    unit = wide / wide.norm(dim=-1, keepdim=True).clamp_min(EPS)
    return unit if unit.dtype == x.dtype else _Rounded.apply(unit, x.dtype)


def unit_rows(x: Tensor) -> Tensor:
    """x (..., D) brought to unit length along D: computed in ``accumulator_dtype``, returned in the dtype of x."""
    wide = x.to(accumulator_dtype(x))
    return (wide / wide.norm(dim=-1, keepdim=True).clamp_min(EPS)).to(x.dtype)


def dot_rows(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i> of a and b (N, D): (N,) in ``accumulator_dtype``."""
    wide = accumulator_dtype(a)
    return (a.to(wide) * b.to(wide)).sum(1)


def paired(op: str, a: Tensor, b: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """a and b (N, D), brought to unit length if ``normalize``, and <a_i, b_i> (N,). A side that needs no gradient stays so."""
    if not normalize:
        return a, b, dot_rows(a, b)
    z, dot = normalize_pair(a, b, op=op)
    x, y = z[: len(a)], z[len(a) :]
    return x if a.requires_grad else x.detach(), y if b.requires_grad else y.detach(), dot


def in_given_dtype(x: Tensor) -> torch.autocast:
    """A context in which autocast leaves the dtypes of matrix products on the device of x as they are."""
    device = "cpu" if x.device.type == "meta" else x.device.type  # autocast does not know meta
    return torch.autocast(device, enabled=False)


class _Matmul(torch.autograd.Function):
    """a @ b in the dtype that they have, also where the backward runs under autocast."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        with in_given_dtype(a):
            return a @ b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        with in_given_dtype(a):
            da = grad @ b.mT if ctx.needs_input_grad[0] else None
            return da, (a.mT @ grad if ctx.needs_input_grad[1] else None)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the dtype that they have, whatever autocast says."""
    return _Matmul.apply(a, b)
