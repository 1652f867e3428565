"""Losses over all pairs of a batch, a block of rows at a time: the N x N matrix is never there at once.

    map_rows(f, rows, shared, width) = cat over blocks b of f(*rows[b], *shared)

f's largest tensor has ``width`` elements for each row; a block holds at most ``BLOCK_ELEMENTS`` of them (on a CPU, where a dozen
such tensors are alive at once, ``CPU_BLOCK_ELEMENTS``) and is computed again in the backward. One block alone is neither split nor
recomputed. Everything that a block allocates is freed before the next one begins: small results that stayed between the blocks
would cut the freed memory into pieces that no later block fits in.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastssl.checks import INTEGERS, check_choice, check_matrix, check_vector

from ._common import accumulator_dtype, in_given_dtype, unit_rows

BLOCK_ELEMENTS = 1 << 23
CPU_BLOCK_ELEMENTS = 1 << 18
DISTANCES = ("euclidean", "squared", "cosine")


def map_rows(
    f: Callable, rows: tuple[Tensor, ...], shared: tuple[Tensor, ...], width: int, *, few: bool = False
) -> tuple[Tensor, ...]:
    """f(*blocks of rows, *shared) -> tuple of tensors with one entry for each row; those, of all rows.

    f closes over no tensor that needs a gradient: those are ``shared``. ``few``: as few blocks as there may be, because each of
    them makes a gradient of a large shared tensor.
    """
    traced = torch.compiler.is_compiling()
    small = rows[0].device.type == "cpu" and not traced and not few
    step = max(1, (min(BLOCK_ELEMENTS, CPU_BLOCK_ELEMENTS) if small else BLOCK_ELEMENTS) // width)
    if step >= rows[0].shape[0]:
        return f(*rows, *shared)
    if not traced:
        return _Blocks.apply(f, step, len(rows), *rows, *shared)
    blocks = zip(*(t.split(step) for t in rows), strict=True)
    parts = [checkpoint(f, *block, *shared, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


class _Blocks(torch.autograd.Function):
    """``map_rows`` outside a compiled graph; f(*tensors), the first ``count`` of which are split into blocks of ``step`` rows."""

    @staticmethod
    def forward(ctx, f, step, count, *tensors):
        rows, shared = tensors[:count], tensors[count:]
        length, outs = rows[0].shape[0], ()
        with in_given_dtype(rows[0]):
            for start in range(0, length, step):
                found = f(*(t[start : start + step] for t in rows), *shared)
                outs = outs or tuple(t.new_empty((length, *t.shape[1:])) for t in found)
                for out, part in zip(outs, found, strict=True):
                    out[start : start + step] = part
                del found, part
        ctx.save_for_backward(*tensors)
        ctx.f, ctx.step, ctx.count = f, step, count
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t in outs if not t.is_floating_point()))
        return outs

    @staticmethod
    def backward(ctx, *grads):
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        with in_given_dtype(tensors[0]):
            if torch.is_grad_enabled():  # a second derivative is asked for: the blocks stay, with their graphs
                return (None, None, None, *_second(ctx, tensors, grads, needed))
            found = [
                torch.zeros_like(t, dtype=accumulator_dtype(t)) if need else None for t, need in zip(tensors, needed, strict=True)
            ]
            for start in range(0, tensors[0].shape[0], ctx.step):
                block = slice(start, start + ctx.step)
                parts = _block_grads(ctx, tensors, grads, needed, block, False)
                for at, (whole, part) in enumerate(zip(found, parts, strict=True)):
                    if part is not None:
                        (whole[block] if at < ctx.count else whole).add_(part)
                del parts, part
        return None, None, None, *(None if t is None else t.to(like.dtype) for t, like in zip(found, tensors, strict=True))


def _block_grads(ctx, tensors, grads, needed, block: slice, create_graph: bool) -> list[Tensor | None]:
    """Gradients of one block of rows with respect to its part of each tensor."""
    parts = [t[block] if at < ctx.count else t.view_as(t) for at, t in enumerate(tensors)]
    if not create_graph:
        parts = [t.detach().requires_grad_(need) for t, need in zip(parts, needed, strict=True)]
    with torch.enable_grad():
        outs = ctx.f(*parts)
    pairs = [(out, grad[block]) for out, grad in zip(outs, grads, strict=True) if grad is not None and out.requires_grad]
    wanted = [t for t, need in zip(parts, needed, strict=True) if need]
    if not pairs:
        return [None] * len(parts)
    outs, grads = zip(*pairs, strict=True)
    given = iter(torch.autograd.grad(outs, wanted, grads, create_graph=create_graph, allow_unused=True))
    return [next(given) if need else None for need in needed]


def _second(ctx, tensors, grads, needed) -> list[Tensor | None]:
    """``_Blocks.backward`` with a graph of its own."""
    starts = range(0, tensors[0].shape[0], ctx.step)
    every = [_block_grads(ctx, tensors, grads, needed, slice(start, start + ctx.step), True) for start in starts]
    found = []
    for at, need in enumerate(needed):
        parts = [part[at] for part in every]
        some = next((part for part in parts if part is not None), None)
        if not need or some is None:
            found.append(None)
        elif at < ctx.count:
            blocks = [tensors[at][start : start + ctx.step] for start in starts]
            found.append(torch.cat([torch.zeros_like(t) if part is None else part for part, t in zip(parts, blocks, strict=True)]))
        else:
            found.append(sum(part for part in parts if part is not None))
    return found


class _Matmul(torch.autograd.Function):
    """a @ b in the dtype given, also in a backward run under autocast."""

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


class _Euclidean(torch.autograd.Function):
    """d_ij = |x_i - y_j| from the differences, so that close rows keep their digits; gradient 0 where d_ij is 0.

    dx_i = sum_j w_ij (x_i - y_j), w = grad / d, by two products; cdist's own backward holds N x M x D elements on a GPU. Of rows
    that lie close to each other and far from the origin the two cancel, so they are in float64.
    """

    @staticmethod
    def forward(ctx, x, y):
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, d)
        return d

    @staticmethod
    def backward(ctx, grad):
        x, y, d = ctx.saved_tensors
        with in_given_dtype(x):
            w, dtype = (grad / d.masked_fill(d == 0, math.inf)).double(), x.dtype
            center = midst(y)  # any constant gives the same gradient; one in the midst of the rows the least rounding
            x, y = x.double() - center, y.double() - center
            dx = (w.sum(1)[:, None] * x - w @ y).to(dtype) if ctx.needs_input_grad[0] else None
            return dx, ((w.sum(0)[:, None] * y - w.mT @ x).to(dtype) if ctx.needs_input_grad[1] else None)


def midst(y: Tensor) -> Tensor:
    """(D,), in each column the median of 33 rows of y (M, D): a few huge rows, which would carry a mean away, do not move it."""
    count = y.new_ones(33, dtype=torch.int64).cumsum(0) - 1  # an arange that is fake where y is
    index = count * (y.shape[0] - 1) // 32
    return y[index].sort(0).values[16]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return _Matmul.apply(a, b)


def distance_rows(x: Tensor, distance: str) -> Tensor:
    """What the distance functions below take: x (N, D) in ``accumulator_dtype``, of unit length for "cosine"."""
    x = x.to(accumulator_dtype(x))
    return unit_rows(x) if distance == "cosine" else x


def _from_euclidean(d: Tensor, x: Tensor, y: Tensor, distance: str) -> Tensor:
    """For unit rows 1 - <x, y> = |x - y|^2 / 2, which does not cancel; rows too small to be unit rows fall short of 1."""
    if distance == "euclidean":
        return d
    if distance == "squared":
        return d.square()
    short_x, short_y = (_shortness(t) for t in (x, y))
    return 0.5 * (d.square() + (short_x[:, None] + short_y if d.dim() == 2 else short_x + short_y))


def _shortness(x: Tensor) -> Tensor:
    """1 - |x_i|^2 (N,) of rows that were too small to be brought to unit length, 0 of all others."""
    left = 1.0 - x.square().sum(1)
    return torch.where(left > 0.5, left, 0.0)


def pair_distance(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """x (N, D), y (M, D) of ``distance_rows`` -> (N, M)."""
    other = y.view_as(y) if y is x else y  # torch.compile takes no tensor twice
    return _from_euclidean(_Euclidean.apply(x, other), x, y, distance)


def row_distance(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """x, y (N, D) of ``distance_rows`` -> (N,); gradient 0 at distance 0."""
    return _from_euclidean(torch.linalg.vector_norm(x - y, dim=1), x, y, distance)


def class_masks(index: Tensor, labels: Tensor, all_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows ``index`` (n,), ``labels`` (n,) against ``all_labels`` (N,): same class but not itself, other class; (n, N) bool."""
    same = labels[:, None] == all_labels
    itself = index[:, None] == torch.arange(all_labels.shape[0], device=index.device)
    return same & ~itself, ~same


def masked_lse(s: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of s (n, N) over ``keep``, and which rows keep any: (n,) each. A row that keeps none: 0 with gradient 0."""
    has = keep.any(1)
    lse = torch.logsumexp(torch.where(has[:, None], s.masked_fill(~keep, -math.inf), 0.0), 1)
    return torch.where(has, lse, 0.0), has


def check_labelled(op: str, features: Tensor, labels: Tensor, distance: str) -> None:
    check_matrix(op, "features", features, "N, D")
    check_vector(op, "labels", labels, features.shape[0], INTEGERS, "features", features)
    check_choice(op, "distance", distance, DISTANCES)


def map_labelled(
    f: Callable,
    features: Tensor,
    labels: Tensor,
    distance: str,
    *rows: Tensor,
    shared: tuple[Tensor, ...] = (),
    cubic: bool = False,
) -> tuple:
    """``map_rows`` of f(d (n, N), same (n, N), other (n, N), *rows (n,), *shared) over the rows of a labelled batch.

    ``cubic``: f makes N x N elements of each row.
    """
    z = distance_rows(features, distance)
    n = z.shape[0]

    def block(x, label, index, *rest):
        *more, z, labels = rest[: len(rows) + 2]
        return f(pair_distance(x, z, distance), *class_masks(index, label, labels), *more, *rest[len(rows) + 2 :])

    index = torch.arange(n, device=z.device)
    return map_rows(block, (z, labels, index, *rows), (z, labels, *shared), n * n if cubic else n)
