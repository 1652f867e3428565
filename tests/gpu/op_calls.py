"""A table of the CUDA C++ ops: small ragged inputs on the CPU, and a call that returns what the op wrote and the gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.functional import (
    ema_update_,
    embed_visible,
    gather_tokens,
    mask_ids,
    masked_patch_loss,
    queue_push_,
    restore_tokens,
)
from fastssl.masking import block_mask, mask_tokens
from fastssl.ops.adamw import adamw_
from fastssl.ops.lars import FORMS, lars_


@dataclass(frozen=True)
class OpCall:
    """``call`` takes tensors of one device in any memory layout. ``exact`` says that the GPU has the CPU's bits."""

    name: str
    tensors: Callable[[], list[Tensor]]
    call: Callable[[list[Tensor]], list[Tensor]]
    exact: bool = True


def _seed(like: Tensor, number: int = 11) -> Tensor:
    return torch.full((), number, dtype=torch.int64, device=like.device)


def _shaped(count: int, dtype: torch.dtype = torch.float32) -> Callable[[], list[Tensor]]:
    """A function that makes ``count`` lists of three tensors, one list after the other, without negative entries."""
    return lambda: [torch.randn(shape).abs().to(dtype) for _ in range(count) for shape in ((257,), (5, 3, 7), (33, 20))]


def _lists(tensors: list[Tensor]) -> list[list[Tensor]]:
    return [tensors[i : i + 3] for i in range(0, len(tensors), 3)]


def _ema(order: str, rounding: str) -> Callable:
    def call(tensors):
        ema, params, shadow = _lists(tensors)
        ema_update_(ema, params, 0.9, order=order, shadow=shadow, rounding=rounding, seed=_seed(ema[0]))
        return [*ema, *shadow]

    return call


def _lars(form: str) -> Callable:
    def call(tensors):
        params, grads, momenta, ema = _lists(tensors)
        lars_(params, grads, momenta, lr=0.3, weight_decay=0.1, form=form, ema=ema)
        return [*params, *momenta, *ema]

    return call


def _adamw(tensors):
    params, grads, first, second, shadow = _lists(tensors)
    adamw_(params, grads, first, second, step=3, shadow=shadow)
    return [*params, *first, *second, *shadow]


def _queue(layout: str) -> Callable:
    def call(tensors):
        queue, ptr, keys, label_queue, labels = tensors
        for _ in range(2):
            queue_push_(queue, ptr, keys, layout=layout, label_queue=label_queue, labels=labels)
        return [queue, ptr, label_queue]

    return call


def _queue_state(*shape: int) -> Callable:
    size = max(shape)
    return lambda: [
        torch.randn(shape),
        torch.tensor([size - 3]),
        torch.randn(21, min(shape)),
        torch.zeros(size, dtype=torch.int64),
        torch.arange(21) + 7,
    ]


def _with_gradients(call: Callable, count: int) -> Callable:
    """A call that returns the value of a differentiable call and the gradients of its first ``count`` tensors."""

    def run(tensors):
        leaves = [t.detach().requires_grad_() for t in tensors[:count]]
        out = call(*leaves, *tensors[count:])
        upstream = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]

    return run


def _order(rows: int, length: int) -> Tensor:
    return torch.rand(rows, length).argsort(1)


def _patches_of(**how) -> OpCall:
    name = "patch_loss " + " ".join(map(str, how.values()))
    call = lambda pred, images, mask: masked_patch_loss(images, pred, mask, (4, 6), **how)  # noqa: E731
    inputs = lambda: [torch.randn(3, 6, 72), torch.rand(3, 3, 8, 18), (_order(3, 6) > 2).float()]  # noqa: E731
    return OpCall(name, inputs, _with_gradients(call, 1), exact=False)


def _embed(images, weight, bias, pos_embed, prefix_tokens, ids):
    return embed_visible(images, weight, ids, bias, pos_embed=pos_embed, prefix_tokens=prefix_tokens)


def _embed_inputs():
    floats = [torch.randn(shape) for shape in ((3, 3, 8, 18), (20, 3, 4, 6), (20,), (1, 8, 20), (1, 2, 20))]
    return [*floats, _order(3, 6)[:, :4]]


CALLS = {
    case.name: case
    for case in (
        OpCall("ema lerp", _shaped(3), _ema("lerp", "nearest")),
        OpCall("ema mul_add", _shaped(3), _ema("mul_add", "nearest")),
        OpCall("ema stochastic", _shaped(3, torch.bfloat16), _ema("lerp", "stochastic")),
        *(OpCall(f"lars {form}", _shaped(4), _lars(form)) for form in FORMS),
        OpCall("adamw", _shaped(5), _adamw),
        OpCall("queue dk", _queue_state(13, 50), _queue("dk")),
        OpCall("queue kd", _queue_state(50, 13), _queue("kd")),
        OpCall("mask_ids noise", lambda: [torch.rand(5, 77)], lambda t: [*mask_ids((5, 77), noise=t[0])]),
        OpCall("mask_ids seed", lambda: [torch.tensor(5)], lambda t: [*mask_ids((7, 49), seed=t[0])]),
        OpCall(
            "mask_tokens",
            lambda: [torch.randint(0, 99, (5, 33)), torch.rand(5, 33) < 0.2],
            lambda t: [*mask_tokens(t[0], special=t[1], mask_id=1, vocab_size=99, seed=_seed(t[0]))],
        ),
        OpCall(
            "block_mask",
            lambda: [torch.arange(7) * 11],
            lambda t: [block_mask(7, (9, 13), t[0], exact=True, seed=_seed(t[0]))],
        ),
        OpCall("gather", lambda: [torch.randn(3, 9, 37), _order(3, 9)[:, :5]], _with_gradients(gather_tokens, 1)),
        OpCall("gather wide", lambda: [torch.randn(3, 9, 64), _order(3, 9)[:, :5]], _with_gradients(gather_tokens, 1)),
        OpCall(
            "restore",
            lambda: [torch.randn(3, 5, 37), torch.randn(1, 1, 37), _order(3, 9)],
            _with_gradients(lambda x, token, ids: restore_tokens(x, ids, token), 2),
            exact=False,
        ),
        OpCall("embed", _embed_inputs, _with_gradients(_embed, 5), exact=False),
        _patches_of(norm_pix_loss=True),
        _patches_of(loss="l1", layout="cpq"),
    )
}


def check(case: OpCall, got: list[Tensor], expected: list[Tensor]) -> None:
    """Checks that the results are equal bit for bit, or within a few roundings of float32 where sums have another order."""
    for a, b in zip(got, expected, strict=True):
        if case.exact:
            assert torch.equal(a.cpu(), b), case.name
        else:
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)
