"""The rows of all processes in one tensor: without gradient for queues and banks, with gradient for losses over all processes."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from fastssl.checks import accumulator_dtype, readable
from fastssl.ops._register import define_composite

from .collectives import gather, gather_even, group_called, initialised, known, reduce_scatter, world_size
from .failures import named

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .ranks import Joined


def gather_rows(rows: Tensor, group: ProcessGroup | None = None, *, even: bool = False) -> Tensor:
    """The rows of all processes in rank order, without gradient: for queues and memory banks.

    (N_0, ...), (N_1, ...), ... become (N_0 + N_1 + ..., ...) in every process. Every process of the group must call it. In one
    process it returns ``rows`` itself, detached.

    Args:
        rows: (N_r, ...) of any dtype, on the device that the group's backend serves. N_r may differ between processes, as in the
            last batch of an epoch, and may be 0.
        group: process group; by default all processes.
        even: a promise that every process brings the same number of rows, of the same shape and dtype. Then one collective is
            enough, shapes are known beforehand, and the host waits for nothing. Otherwise the numbers of rows are exchanged first,
            and the host waits for them.

    Returns:
        (N_0 + N_1 + ..., ...), dtype and device of ``rows``, without gradient.

    Raises:
        TypeError: ``rows`` is no tensor.
        ValueError: no dimension to gather along, ``group`` without this process or without a process group, or (not ``even``; in
            every process alike) dtypes or widths that differ between processes.

    Examples:
        >>> keys = torch.randn(8, 16, requires_grad=True)
        >>> gathered = gather_rows(keys)  # in one process
        >>> gathered.shape, gathered.requires_grad
        (torch.Size([8, 16]), False)
    """
    op = "gather_rows"
    world = _check(op, rows, group)
    rows = rows.detach()
    if world == 1:
        return rows
    if even:
        return gather_even(rows, world, group)
    return gather(rows, _row_counts(op, rows, world, group), group)


class _GatherWithGradient(torch.autograd.Function):
    """The gradients that all processes have for a row are added up in the process that the row came from."""

    @staticmethod
    def forward(ctx, rows, world, group):
        ctx.count, ctx.world, ctx.group = len(rows), world, group
        return gather_even(rows, world, group)

    @staticmethod
    def backward(ctx, grad):
        sums = reduce_scatter(grad.to(accumulator_dtype(grad)), [ctx.count] * ctx.world, known(ctx.group))
        return sums.to(grad.dtype), None, None


def gather_rows_with_grad(rows: Tensor, group: ProcessGroup | None = None) -> tuple[Tensor, int]:
    """The rows of all processes in rank order, with gradient, and the place of this process's first row among them.

    The backward adds, over all processes, the gradients of each row, as the gathers of lightly, solo-learn and open_clip do;
    DistributedDataParallel then takes the mean over processes. Every process must call it, and its backward.

    Args:
        rows: (N, ...) floating, of one shape and dtype in every process. That is compared on a CPU, where it costs no wait for a
            GPU.
        group: process group; by default all processes.

    Returns:
        The rows (ranks N, ...), and the number of rows before this process's own. In one process ``rows`` itself and 0.

    Raises:
        TypeError: ``rows`` is no tensor.
        ValueError: no dimension to gather along, ``group`` without this process or without a process group; on a CPU, in every
            process alike, shapes or dtypes that differ.

    Examples:
        >>> z = torch.randn(8, 16, requires_grad=True)
        >>> everyone, first = gather_rows_with_grad(z)  # in one process
        >>> everyone is z, first
        (True, 0)
    """
    op = "gather_rows_with_grad"
    world = _check(op, rows, group)
    if world == 1:
        return rows, 0
    if readable(rows):
        counts = _row_counts(op, rows, world, group)
        if min(counts) != max(counts):
            raise ValueError(f"{op}: every process must bring as many rows, got {counts}")
    return _GatherWithGradient.apply(rows, world, group), distributed.get_rank(group) * len(rows)


def _all_rows(rows: Tensor, counts: Tensor, name: str) -> Tensor:
    with named("rows_of_joined", "the gather of rows", name):
        return gather(rows, counts.tolist(), group_called(name)).clone()


def _own_rows(rows: Tensor, counts: Tensor, count: int, name: str) -> Tensor:
    with named("rows_of_joined", "the sum of gradients", name):
        return reduce_scatter(rows, counts.tolist(), group_called(name)).clone()


def _fake_rows(rows: Tensor, counts: Tensor, name: str) -> Tensor:
    return rows.new_empty((torch.library.get_ctx().new_dynamic_size(), *rows.shape[1:]))


_all = define_composite("ranks_rows", "(Tensor rows, Tensor counts, str name) -> Tensor", _fake_rows, _all_rows)
_own = define_composite(
    "ranks_rows_own",
    "(Tensor rows, Tensor counts, SymInt count, str name) -> Tensor",
    lambda rows, counts, count, name: rows.new_empty((count, *rows.shape[1:])),
    _own_rows,
)


class _RowsOfJoined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, counts, name):
        ctx.save_for_backward(counts)
        ctx.count, ctx.name = rows.shape[0], name
        return _all(rows, counts, name)

    @staticmethod
    def backward(ctx, grad):
        return _own(grad, ctx.saved_tensors[0], ctx.count, ctx.name), None, None


def rows_of_joined(joined: Joined, rows: Tensor) -> Tensor:
    """The rows (N, ...), float32 or float64, of all processes that compute a loss together, in rank order. The gradient of a row is
    the sum of what the processes have for it."""
    return _RowsOfJoined.apply(rows, joined.counts, joined.name)


def _check(op: str, rows: Tensor, group: ProcessGroup | None) -> int:
    """Checks the arguments and returns the number of processes."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{op}: rows must be a tensor (N, ...), got {type(rows).__name__}")
    if rows.dim() == 0:
        raise ValueError(f"{op}: rows must have shape (N, ...), got a tensor without dimensions")
    world = world_size(group)
    if world < 0:
        raise ValueError(f"{op}: group must contain this process, rank {distributed.get_rank()}")
    if group is not None and not initialised():
        raise ValueError(f"{op}: group was given, but there is no process group")
    return world


def _row_counts(op: str, rows: Tensor, world: int, group: ProcessGroup | None) -> list[int]:
    """N of each process. Where rows do not match, every process raises; otherwise some would wait for the others for ever."""
    form = zlib.crc32(f"{rows.dtype} {tuple(rows.shape[1:])}".encode())
    table = gather_even(torch.tensor([[len(rows), form]], device=rows.device), world, group).tolist()
    if others := [rank for rank, (_, other) in enumerate(table) if other != form]:
        mine = f"{rows.dtype} {('N', *rows.shape[1:])}".replace("'", "")
        raise ValueError(f"{op}: rows must have one dtype and width in every process, got {mine} here, others in ranks {others}")
    return [count for count, _ in table]
