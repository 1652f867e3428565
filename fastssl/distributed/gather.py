"""Rows of all processes in one tensor: without gradient for queues and banks, with it for losses over all processes."""

import zlib

import torch
from torch import Tensor, distributed

from fastssl.checks import readable


def world_size(group=None) -> int:
    """Processes in ``group`` (by default all); 1 where no process group was made."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


def gather_rows(rows: Tensor, group=None, *, even: bool = False) -> Tensor:
    """The rows of all processes in rank order: (N_0, ...), (N_1, ...), ... -> (N_0 + N_1 + ..., ...), without gradient.

    Every process of the group must call it. In one process it returns ``rows`` itself, detached.

    Args:
        rows: (N_r, ...) of any dtype, on the device that the group's backend serves. N_r may differ between processes, as in the
            last batch of an epoch, and may be 0.
        group: process group; by default all processes.
        even: every process brings as many rows of the same shape and dtype, and promises it: one collective, shapes known
            beforehand, no host sync. Otherwise counts are exchanged first and the host waits for them.

    Raises:
        TypeError: ``rows`` is no tensor.
        ValueError: no dimension to gather along, ``group`` without this process or without a process group, or (not ``even``; in
            every process alike) dtypes or widths that differ between processes.
    """
    op = "gather_rows"
    world = _check(op, rows, group)
    rows = rows.detach()
    if world == 1:
        return rows
    if even:
        return _gather_even(rows, world, group)
    counts = _row_counts(op, rows, world, group)
    longest = max(counts)
    if min(counts) == longest:
        return _gather_even(rows, world, group)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    blocks = _gather_even(padded, world, group).chunk(world)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


class _GatherWithGradient(torch.autograd.Function):
    """The gradients that all processes have for a row are summed where it came from."""

    @staticmethod
    def forward(ctx, rows, world, group):
        ctx.count, ctx.group = len(rows), group
        return _gather_even(rows, world, group)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        distributed.all_reduce(grad, group=ctx.group)
        first = distributed.get_rank(ctx.group) * ctx.count
        return grad[first : first + ctx.count], None, None


def gather_rows_with_grad(rows: Tensor, group=None) -> tuple[Tensor, int]:
    """The rows of all processes in rank order with their gradient, and the place of this process's first row among them.

    The backward adds, over all processes, the gradients of each row, as the gathers of lightly, solo-learn and open_clip do;
    DistributedDataParallel then takes the mean over processes. Every process must call it, and its backward.

    Args:
        rows: (N, ...), floating, of one shape and dtype in every process; compared on a CPU, where it costs no wait for a GPU.
        group: process group; by default all processes.

    Returns:
        (ranks N, ...) and the number of rows before this process's own. In one process ``rows`` itself and 0.

    Raises:
        TypeError, ValueError: as ``gather_rows``; on a CPU, in every process alike, shapes or dtypes that differ.
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


def _check(op: str, rows: Tensor, group) -> int:
    """The number of processes, after a look at the arguments."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{op}: rows must be a tensor (N, ...), got {type(rows).__name__}")
    if rows.dim() == 0:
        raise ValueError(f"{op}: rows must have shape (N, ...), got a tensor without dimensions")
    world = world_size(group)
    if world < 0:
        raise ValueError(f"{op}: group must contain this process, rank {distributed.get_rank()}")
    if group is not None and not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(f"{op}: group was given, but there is no process group")
    return world


def _gather_even(rows: Tensor, world: int, group) -> Tensor:
    """rows (N, ...) -> (world N, ...). Travels as bytes: backends differ in the dtypes that they know."""
    everyone = rows.new_empty((world * len(rows), *rows.shape[1:]))
    if everyone.numel():
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # the name up to torch 2.12
        gather(everyone.flatten().view(torch.uint8), rows.contiguous().flatten().view(torch.uint8), group=group)
    return everyone


def _row_counts(op: str, rows: Tensor, world: int, group) -> list[int]:
    """N of each process; all of them refuse alike, instead of some waiting for the others, where the rows do not match."""
    kind = zlib.crc32(f"{rows.dtype} {tuple(rows.shape[1:])}".encode())
    table = _gather_even(torch.tensor([[len(rows), kind]], device=rows.device), world, group).tolist()
    if others := [rank for rank, (_, other) in enumerate(table) if other != kind]:
        mine = f"{rows.dtype} {('N', *rows.shape[1:])}".replace("'", "")
        raise ValueError(f"{op}: rows must have one dtype and width in every process, got {mine} here, others in ranks {others}")
    return [count for count, _ in table]
