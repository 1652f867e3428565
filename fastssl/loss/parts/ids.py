"""Ids of rows, and sums over the rows of equal id."""

import functools

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def arange_ids(x: Tensor, start: int = 0) -> Tensor:
    """(N,) int32, one id for each row of x (N, D); 32-bit ids are the cheapest to compare."""
    if isinstance(x, FakeTensor) and not torch.compiler.is_compiling():
        with x.fake_mode:
            return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)
    return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)


def compact_ids(ids: Tensor) -> Tensor:
    """ids (N,) integers -> (N,) int64 in [0, N), equal where the given ones are; no host sync, unlike torch.unique."""
    value, order = ids.sort(stable=True)
    new = torch.cat([value.new_zeros(1, dtype=torch.int64), (value[1:] != value[:-1]).to(torch.int64)]).cumsum(0)
    return torch.empty_like(new).scatter_(0, order, new)


def class_sums(values: Tensor, ids: Tensor) -> Tensor:
    """values (N, D), compact ids (N,) -> (N, D): row c is the sum over class c, zeros beyond the last class.

    ``index_put`` with accumulation sums in a fixed order on a GPU too, where ``index_add`` does not.
    """
    return torch.zeros_like(values).index_put((ids,), values, accumulate=True)


@functools.lru_cache(maxsize=16)
def _ids(count: int, device: torch.device, stream: int) -> Tensor:
    """0 .. count - 1 twice, int32; of each stream its own, on which it is ready."""
    return torch.arange(count, dtype=torch.int32, device=device).repeat(2)


def pair_ids(x: Tensor) -> Tensor:
    """x (B, D) -> 0 .. B - 1 twice, (2B,) int32: the two views of a picture have one id. The same tensor for the same batch size.

    A graph that is captured makes its own, which belong to its memory; so does whatever is traced, fake or in inference mode.
    """
    plain = type(x) in (Tensor, torch.nn.Parameter) and torch._C._len_torch_dispatch_stack() == 0
    if not plain or torch.is_inference_mode_enabled():
        return arange_ids(x).repeat(2)
    if x.device.type != "cuda":
        return _ids(len(x), x.device, 0)
    if torch.cuda.is_current_stream_capturing():
        return arange_ids(x).repeat(2)
    return _ids(len(x), x.device, torch.cuda.current_stream(x.device).cuda_stream)
