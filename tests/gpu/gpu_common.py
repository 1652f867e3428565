"""What the GPU tests share."""

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
    """Matrices of float32 as products of a precision may read them: TF32 with "high", bfloat16 with "medium"."""
    if x.dim() < 2 or x.dtype != torch.float32 or precision == "highest":
        return x
    return x.bfloat16().float() if precision == "medium" else ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def no_sync():
    """An error where the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(call, warm=None):
    """A graph of ``call`` and what it returned, after ``warm`` (or the call itself) has run on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        (warm or call)()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out
