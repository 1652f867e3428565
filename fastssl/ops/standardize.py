"""Contract of the op that brings the columns of two views to mean 0 and, where wanted, variance 1: one pass each way.

    x_ai = (a_ai - mean_i) r_i,   mean_i = sum_a a_ai / N,   r_i = 1 / sqrt(sum_a (a_ai - mean_i)^2 / N + eps), or 1        (N, C)
    apart_i = sum_a (a_ai - b_ai)^2, where the columns are centred only                                                     (C,)
    scaled:   da_ai = r_i (dx_ai - x_ai sum_a' dx_a'i x_a'i / N)
    centred:  da_ai = dx_ai + 2 dapart_i (a_ai - b_ai)

and the same for b and y. The mean counts as a constant in the backward, which is right where sum_a dx_ai = 0 in each column. That
holds for every function of x^T y and x^T x, which are all that Barlow Twins and VICReg take: their dx are combinations of such
columns. x and y are float32 (float64 for float64). Bytes: the forward reads 2NC elements and writes 2NC, the backward reads 4NC and
writes 2NC. Over several processes the moments of all rows are given (4, C) in float64, and so are the dots of the backward (2, C).
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from ._register import define_composite, distinct, first_derivative_only, new_accumulator, refuse_transforms, save, saved


def means_of(t: Tensor) -> Tensor:
    """The means (C,) of the columns of t (N, C), float64."""
    return t.mean(0, dtype=torch.float64)


def centred(t: Tensor, mean: Tensor) -> Tensor:
    """t (N, C) without the float64 means (C,), in the accumulator dtype.

    What the mean has beyond that dtype is subtracted too, so that columns far from 0 have a mean of 0 to the last bits.
    """
    high = mean.to(accumulator_dtype(t))
    x = t - high
    return x if x.dtype == torch.float64 else x.sub_((mean - high).to(x.dtype))


def moments_of(a: Tensor, b: Tensor) -> Tensor:
    """Means and variances (4, C) of the columns of a and b (N, C), float64: mean of a, mean of b, variance of a, variance of b."""
    mean = torch.stack([means_of(a), means_of(b)])
    squares = [centred(t, m).square().mean(0).double() for t, m in zip((a, b), mean, strict=True)]
    return torch.cat([mean, torch.stack(squares)])


def _forward(a, b, eps, scaled, moments):
    wide = accumulator_dtype(a)
    mean = torch.stack([means_of(a), means_of(b)]) if moments is None else moments[:2]
    x, y = centred(a, mean[0]), centred(b, mean[1])
    apart = a.new_empty(0, dtype=wide) if scaled else (a.to(wide) - b).square_().sum(0)
    if scaled:
        var = torch.stack([t.square().mean(0) for t in (x, y)]) if moments is None else moments[2:].to(wide)
        r = (var + eps).rsqrt_()
        x.mul_(r[0]), y.mul_(r[1])
    else:
        r = x.new_ones(2, x.shape[1])
    return x, y, torch.cat([(mean[0] - mean[1]).to(wide)[None], r]), apart


def _fake_fwd(a, b, eps, scaled, moments):
    columns = a.shape[1]
    x, y = (new_accumulator(a, *a.shape) for _ in range(2))
    return x, y, new_accumulator(a, 3, columns), new_accumulator(a, 0 if scaled else columns)


def dots_of(dx: Tensor, x: Tensor) -> Tensor:
    """sum_a dx_ai x_ai (C,) of dx and x (N, C)."""
    return (dx * x).sum(0)


def _backward(dx, dy, dapart, x, y, stats, dots, scaled, dtype):
    if scaled:
        dots = torch.stack([dots_of(dx, x), dots_of(dy, y)]).div_(len(x)) if dots is None else dots
        sides = zip((dx, dy), (x, y), dots, stats[1:], strict=True)
        da, db = (torch.addcmul(g, z, dot, value=-1).mul_(r) for g, z, dot, r in sides)
    else:
        apart = (x - y).add_(stats[0]).mul_(2.0 * dapart)
        da, db = dx + apart, dy - apart
    return da.to(dtype), db.to(dtype)


def _fake_bwd(dx, dy, dapart, x, y, stats, dots, scaled, dtype):
    return x.new_empty(x.shape, dtype=dtype), y.new_empty(y.shape, dtype=dtype)


_fwd = define_composite(
    "standardize_pair_fwd",
    "(Tensor a, Tensor b, float eps, bool scaled, Tensor? moments) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_fwd,
    _forward,
)
_bwd = define_composite(
    "standardize_pair_bwd",
    "(Tensor dx, Tensor dy, Tensor dapart, Tensor x, Tensor y, Tensor stats, Tensor? dots, bool scaled, ScalarType dtype) "
    "-> (Tensor, Tensor)",
    _fake_bwd,
    _backward,
)


class _StandardizePair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, moments, eps, scaled, op):
        x, y, stats, apart = _fwd(a, b, eps, scaled, moments)
        save(ctx, x, y, stats)
        ctx.scaled, ctx.dtype, ctx.op = scaled, a.dtype, op
        return x, y, apart

    @staticmethod
    @first_derivative_only("standardize_pair")
    def backward(ctx, dx, dy, dapart):
        x, y, stats = saved(ctx)
        da, db = _bwd(dx, dy, dapart, x, y, stats, None, ctx.scaled, ctx.dtype)
        wants = ctx.needs_input_grad
        return da if wants[0] else None, db if wants[1] else None, *(None,) * 4


def standardize_pair(
    op: str, a: Tensor, b: Tensor, eps: float | None, moments: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """a, b (N, C), already checked -> x, y (N, C) in the accumulator dtype, and apart (C,).

    For an ``eps`` of None columns are centred only; otherwise apart is (0,). ``moments`` are those of ``moments_of``, where they
    are known. What is made of x and y must not change where a number is added to a column.
    """
    refuse_transforms(op, a, b)
    return _StandardizePair.apply(a, distinct(b, a), moments, eps or 0.0, eps is not None, op)
