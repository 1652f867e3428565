"""Functions that the GPU tests share."""

from contextlib import contextmanager

import torch


def on_gpu(tensors):
    return [t.cuda() for t in tensors]


def same(ours, theirs) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(ours, theirs, strict=True))


def odd(x):
    """A copy that begins one element behind an aligned address."""
    room = x.new_zeros(x.numel() + 1)
    view = room[1:].view(x.shape)
    view.copy_(x)
    return view


def rounded(x, precision):
    """x as matrix products of this precision may read it: a float32 matrix becomes TF32 with "high", bfloat16 with "medium"."""
    if x.dim() < 2 or x.dtype != torch.float32 or precision == "highest":
        return x
    return x.bfloat16().float() if precision == "medium" else ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def no_sync():
    """A context in which torch raises an error if the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
