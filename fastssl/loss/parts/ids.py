"""Ids of rows, and sums over the rows of equal id."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastssl.checks import INTEGERS, check_dense, check_same_device, readable

if TYPE_CHECKING:
    from fastssl.distributed.ranks import Joined


def arange_ids(x: Tensor, start: int = 0) -> Tensor:
    """One id for each row of x (N, D), from ``start`` on: (N,) int32, because 32-bit ids are the cheapest to compare."""
    if isinstance(x, FakeTensor) and not torch.compiler.is_compiling():
        with x.fake_mode:
            return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)
    return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)


def row_ids(x: Tensor, joined: Joined | None = None) -> Tensor:
    """One id for each row of x (N, D), (N,) int32: its number among the rows, or among those of all processes."""
    own = arange_ids(x)
    return own if joined is None else own + joined.first.to(torch.int32)


def check_index(op: str, name: str, index: Tensor, dims: int, of: str, rows: int, query: Tensor) -> None:
    """Rows of the table ``of`` that each query (N, D) names: integers (N,), or (N, M) for two ``dims``, in [0, rows)."""
    shape = "({},)" if dims == 1 else "({}, M)"
    check_dense(op, name, index, f"an integer tensor {shape}", len(query))
    if index.dtype not in INTEGERS:
        raise TypeError(f"{op}: {name} must be an integer tensor {shape.format(len(query))}, got {index.dtype}")
    if index.dim() != dims or index.shape[0] != query.shape[0] or 0 in index.shape:
        wanted = shape.format(len(query))
        raise ValueError(f"{op}: {name} must have shape {wanted}, one row for each of query, got {tuple(index.shape)}")
    check_same_device(op, name, index, "query", query)
    if readable(index):
        low, high = (int(t) for t in index.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(f"{op}: {name} must be rows of {of}, from 0 to {rows - 1}, got {low} to {high}")


def compact_ids(ids: Tensor) -> Tensor:
    """New ids (N,) int64 in [0, N) for integers (N,), equal where those are equal. Unlike torch.unique it waits for no GPU."""
    value, order = ids.sort(stable=True)
    new = torch.cat([value.new_zeros(1, dtype=torch.int64), (value[1:] != value[:-1]).to(torch.int64)]).cumsum(0)
    return torch.empty_like(new).scatter_(0, order, new)


def class_sums(values: Tensor, ids: Tensor) -> Tensor:
    """Sums (N, D) of values (N, D) with ``compact_ids`` (N,): row c is the sum over class c; rows beyond the last class are 0.

    ``index_put`` with accumulation adds in a fixed order on a GPU too; ``index_add`` does not.
    """
    return torch.zeros_like(values).index_put((ids,), values, accumulate=True)


@functools.lru_cache(maxsize=16)
def _ids(count: int, device: torch.device, stream: int) -> Tensor:
    """0 .. count - 1 twice, int32. Each stream has its own tensor, which is ready on that stream."""
    return torch.arange(count, dtype=torch.int32, device=device).repeat(2)


def pair_ids(x: Tensor) -> Tensor:
    """Ids (2B,) int32 for the rows of two views (B, D): 0 .. B - 1 twice, so that both views of a picture have one id.

    The same batch size gets the same tensor again. A graph that is captured makes ids of its own, which lie in its memory, and so
    do traced calls, fake tensors and inference mode.
    """
    plain = type(x) in (Tensor, torch.nn.Parameter) and torch._C._len_torch_dispatch_stack() == 0
    if not plain or torch.is_inference_mode_enabled():
        return arange_ids(x).repeat(2)
    if x.device.type != "cuda":
        return _ids(len(x), x.device, 0)
    if torch.cuda.is_current_stream_capturing():
        return arange_ids(x).repeat(2)
    return _ids(len(x), x.device, torch.cuda.current_stream(x.device).cuda_stream)
