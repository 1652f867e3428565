"""The collectives of ``torch.distributed``: no other file of fastssl calls one.

They are torch's functional collectives, which a compiled graph may hold, and point-to-point messages for what travels in a ring.
Rows go as they are where every process has as many. Otherwise they are padded to the longest, because torch's collectives want
equal parts.

What one of them costs a process of W with n bytes of its own: ``gather`` receives (W - 1) n, ``reduce_scatter`` sends as much,
``exchange`` sends and receives as much, and ``Shift`` sends and receives n.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def initialised() -> bool:
    """Whether this process belongs to processes that can talk."""
    return distributed.is_available() and distributed.is_initialized()


def world_size(group: ProcessGroup | None = None) -> int:
    """The number of processes that train together.

    Args:
        group: a process group; by default all processes.

    Returns:
        The number of processes in the group; 1 where no process group was made, and -1 where the group is without this process.

    Examples:
        >>> world_size()
        1
    """
    return distributed.get_world_size(group) if initialised() else 1


def known(group: ProcessGroup | None) -> ProcessGroup:
    """The group itself, or that of all processes for None."""
    everyone = distributed.group.WORLD if group is None else group
    assert everyone is not None  # there are several processes
    return everyone


def group_name(group: ProcessGroup | None) -> str:
    """The name by which torch knows a group; that of all processes for None."""
    return known(group).group_name


def group_called(name: str) -> ProcessGroup:
    """The group of a name."""
    resolve: Any = distributed.distributed_c10d._resolve_process_group  # which wants a type of its own for names
    return resolve(name)


def _functional(*names: str):
    """A functional collective, by the first of its names that this torch knows; a torch without processes has no such module."""
    from torch.distributed import _functional_collectives as functions

    return next(getattr(functions, name) for name in names if hasattr(functions, name))


def _done(result: Tensor) -> Tensor:
    """The result of a functional collective when it is there."""
    return _functional("wait_tensor")(result)


def _all_gather(rows: Tensor, group: ProcessGroup) -> Tensor:
    """(N, ...) of each process -> (W N, ...)."""
    return _done(_functional("all_gather_single", "all_gather_tensor")(rows.contiguous(), 0, group))


def _as_bytes(rows: Tensor) -> Tensor:
    return rows.contiguous().flatten().view(torch.uint8)


def gather_even(rows: Tensor, world: int, group: ProcessGroup | None) -> Tensor:
    """The rows (world N, ...) of all processes, N from each; sent as bytes, since backends differ in the dtypes that they know."""
    if rows.numel() == 0:
        return rows.new_empty((world * len(rows), *rows.shape[1:]))
    return _all_gather(_as_bytes(rows), known(group)).view(rows.dtype).view(world * len(rows), *rows.shape[1:])


def padded(rows: Tensor, length: int) -> Tensor:
    """Rows (N, ...) with zeros behind them: (length, ...)."""
    if len(rows) == length:
        return rows
    longer = rows.new_zeros((length, *rows.shape[1:]))
    longer[: len(rows)] = rows
    return longer


def gather(rows: Tensor, counts: Sequence[int], group: ProcessGroup | None) -> Tensor:
    """The rows of all processes in rank order, (sum of counts, ...); process r has counts[r] of them."""
    longest = max(counts)
    everyone = gather_even(padded(rows, longest), len(counts), group)
    if min(counts) == longest:
        return everyone
    return torch.cat([block[:count] for block, count in zip(everyone.chunk(len(counts)), counts, strict=True)])


def reduce_scatter(rows: Tensor, counts: Sequence[int], group: ProcessGroup) -> Tensor:
    """The sum over processes of rows (sum of counts, ...), of which process r gets its own counts[r]."""
    longest, rank = max(counts), group.rank()
    if min(counts) < longest:
        rows = torch.cat([padded(block, longest) for block in rows.split(list(counts))])
    sums = _functional("reduce_scatter_single", "reduce_scatter_tensor")(rows.contiguous(), "sum", 0, group)
    return _done(sums)[: counts[rank]]


def all_reduce(values: Tensor, group: ProcessGroup, how: str = "sum") -> Tensor:
    """The sum, or with "max" the largest, over processes of a tensor, in all of them."""
    return _done(_functional("all_reduce")(values.contiguous(), how, group))


def exchange(rows: Tensor, counts: Sequence[int], group: ProcessGroup) -> list[Tensor]:
    """Rows (sum of counts, ...), of which counts[r] are for process r -> what each process has for this one, in rank order."""
    mine = counts[group.rank()]
    size = rows[:1].numel() if len(rows) else 1
    sent = [count * size for count in counts]
    flat = _functional("all_to_all_single")(rows.contiguous().flatten(), [mine * size] * len(counts), sent, group)
    return [part.view(mine, *rows.shape[1:]) for part in _done(flat).split(mine * size)]


_CHANNELS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _timeout_of(group: ProcessGroup) -> timedelta:
    """How long a collective of the group waits for the others."""
    found = (getattr(group._get_backend(device), "options", None) for device in group._device_types)
    return next((options._timeout for options in found if options is not None), distributed.constants.default_pg_timeout)


def _channel(group: ProcessGroup) -> Any:
    """A connection of the group's processes over the CPU, for what the host must know. It is made at the first call.

    Whatever else the processes exchange over their own group, such as the gradients of DistributedDataParallel, is not mixed up
    with it, and no GPU is waited for. It is no group that torch knows: the names of ``torch.distributed.new_group`` depend on how
    many groups a process belongs to, and two processes that do not agree there would wait for each other for ever.
    """
    if group not in _CHANNELS:
        store = distributed.PrefixStore(f"fastssl/{group.group_name}", distributed.distributed_c10d._get_default_store())
        _CHANNELS[group] = distributed.ProcessGroupGloo(store, group.rank(), group.size(), _timeout_of(group))
    return _CHANNELS[group]


def told_by_all(values: Tensor, group: ProcessGroup) -> Tensor:
    """What each process tells the others: values (n,) on the CPU, of one length everywhere -> (W, n). The host waits for all."""
    everyone = values.new_empty(group.size() * len(values))
    _channel(group)._allgather_base(everyone, values).wait()
    return everyone.view(group.size(), -1)


class Shift:
    """Tensors on their way to the next process of a ring, or to one further on, while those of another one come in.

    The transfer begins at once and goes on beside the computation; ``wait`` returns what came. A tensor without elements is not
    sent, so both sides have to know the shapes.
    """

    def __init__(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor], group: ProcessGroup, distance: int = 1):
        """``outgoing`` are sent ``distance`` processes ahead; ``incoming`` are empty tensors of the shapes that come."""
        rank, world = group.rank(), group.size()
        self.incoming = list(incoming)
        self.held = [t.contiguous() for t in outgoing]  # they must live until the transfer is done
        ahead, behind = (rank + distance) % world, (rank - distance) % world
        messages = [distributed.P2POp(distributed.isend, t, group=group, group_peer=ahead) for t in self.held if t.numel()]
        messages += [distributed.P2POp(distributed.irecv, t, group=group, group_peer=behind) for t in self.incoming if t.numel()]
        self.transfers = distributed.batch_isend_irecv(messages) if messages else []

    def wait(self) -> list[Tensor]:
        """What came in."""
        for transfer in self.transfers:
            transfer.wait()
        return self.incoming
