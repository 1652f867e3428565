"""Losses over all pairs of a batch, computed a block of rows at a time: the N x N matrix is never there at once.

    map_rows(f, rows, shared, width) = cat over blocks b of f(*rows[b], *shared)

``width`` is the number of elements that f's largest tensor has for each row. A block holds at most ``BLOCK_ELEMENTS`` elements
(on a CPU, where a dozen such tensors are alive at once, ``CPU_BLOCK_ELEMENTS``), and the backward computes it again. Where one
block holds all rows, nothing is split and nothing is computed again. Everything that a block allocates is freed before the next
one begins: small results that stayed between the blocks would cut the freed memory into pieces that no later block fits in.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastssl.checks import accumulator_dtype

from .dot_products import in_given_dtype

BLOCK_ELEMENTS = 1 << 23
CPU_BLOCK_ELEMENTS = 1 << 18


def map_rows(
    f: Callable, rows: tuple[Tensor, ...], shared: tuple[Tensor, ...], width: int, *, few: bool = False
) -> tuple[Tensor, ...]:
    """What f(*rows, *shared) returns, computed in blocks of rows.

    f returns a tuple of tensors with one entry for each row. It must not close over a tensor that needs a gradient; such tensors
    are passed as ``shared``. With ``few`` the blocks are as large as on a GPU: then each of them makes a gradient of a large
    shared tensor.
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
    """``map_rows`` outside a compiled graph: f(*tensors), of which the first ``count`` are split into blocks of ``step`` rows."""

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
            if torch.is_grad_enabled():  # a second derivative is asked for, so the blocks stay, with their graphs
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
    found: list[Tensor | None] = []
    for at, need in enumerate(needed):
        parts = [part[at] for part in every]
        some = next((part for part in parts if part is not None), None)
        if not need or some is None:
            found.append(None)
        elif at < ctx.count:
            blocks = [tensors[at][start : start + ctx.step] for start in starts]
            found.append(torch.cat([torch.zeros_like(t) if part is None else part for part, t in zip(parts, blocks, strict=True)]))
        else:
            found.append(functools.reduce(torch.add, (part for part in parts if part is not None)))
    return found
