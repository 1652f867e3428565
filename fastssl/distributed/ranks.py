"""``group=`` of a loss: which processes compute it together, how many rows each brings, and what that makes of the mean.

The rule, for DistributedDataParallel, which takes the mean of the gradients over W processes: process r returns

    W / N_total  times  the sum over its own N_r rows,         N_total = sum_r N_r

of losses whose columns are those of all processes, and the gradient of a column is the sum over processes. The mean over
processes, of losses and of gradients, is then that of one process with the joined batch. With equal batches this is the mean over
the own rows. The gradient of a scale or a bias is this process's share; DistributedDataParallel joins the shares.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from fastssl.checks import accumulator_dtype, check_choice, check_flag
from fastssl.ops._register import define_composite

from .collectives import group_called, group_name, initialised, told_by_all, world_size
from .failures import RanksError, named
from .travel import TRANSPORTS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CALL_BYTES = 512  # of the description of a call, which processes compare


@dataclass(frozen=True)
class Ranks:
    """The processes that compute a loss together, and how rows travel between them: what ``group=`` of a loss takes.

    ``group=torch.distributed.group.WORLD``, or any other process group, means ``Ranks(group)``.

    Args:
        group: a process group; by default all processes.
        transport: "gather": one all-gather of all columns, memory O(M D) for the M rows of all processes. "ring": the columns
            travel from process to process while those before are computed with, memory O(N D) for a process's own N rows. Both
            give the same loss and gradients up to rounding.
        even: a promise that every process brings equally many rows and the same arguments. Otherwise the processes tell each other
            at each call, over the CPU: uneven batches then are exact, and what does not match raises an error in every process.
            No GPU is waited for in either case.

    Raises:
        TypeError, ValueError: something else than a process group, another transport, or ``even`` that is not True or False.

    Examples:
        >>> from fastssl.functional import nt_xent
        >>> z0, z1 = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
        >>> loss = nt_xent(z0, z1, 0.1, group=Ranks(transport="ring"))  # in one process: the loss of its rows
        >>> torch.equal(loss, nt_xent(z0, z1, 0.1))
        True
    """

    group: ProcessGroup | None = None
    transport: str = "gather"
    even: bool = False

    def __post_init__(self):
        if self.group is not None and not _is_group(self.group):
            raise TypeError(f"Ranks: group must be a process group or None, got {type(self.group).__name__}")
        check_choice("Ranks", "transport", self.transport, TRANSPORTS)
        check_flag("Ranks", "even", self.even)


def _is_group(value: object) -> bool:
    return distributed.is_available() and isinstance(value, distributed.ProcessGroup)


@dataclass(frozen=True)
class Joined:
    """A call of a loss in W > 1 processes: what its parts need to know. ``counts``, ``first`` and ``total`` count rows."""

    op: str
    name: str  # of the group
    transport: str
    world: int
    counts: Tensor  # (W,) int64 on the CPU, rows of each process
    first: Tensor  # () int64 on the rows' device: the rows before this process's own
    total: Tensor  # () float32 or float64 there: N_total
    keep: bool  # whether gathered columns may be saved for the backward: their number is known to a graph

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return group_called(self.name).rank()

    def route(self) -> tuple[Tensor, str, str]:
        """What the operations over several processes take as their last arguments."""
        return self.counts, self.transport, self.name

    def times(self, views: int) -> Joined:
        """The same processes where each row of ``counts`` is ``views`` rows of a side, those of one process behind each other."""
        return replace(self, counts=self.counts * views, first=self.first * views, total=self.total * views)

    def mean(self, total: Tensor, per_row: int = 1) -> Tensor:
        """What this process returns as its mean: W ``total`` / (``per_row`` N_total), ``total`` being a sum over its own rows."""
        return total * (self.world / per_row) / self.total.to(total.dtype)

    def reduce(self, losses: Tensor, reduction: str) -> Tensor:
        """Losses of the own rows, of any shape with N in it, to W / N_total times their sum, W times their sum, or as they are."""
        if reduction == "none":
            return losses.flatten()
        if reduction == "sum":
            return self.world * losses.sum()
        return self.mean(losses.sum(), losses.numel() // losses.shape[-1])


def as_ranks(op: str, group: ProcessGroup | Ranks | None) -> Ranks | None:
    """The argument ``group=`` after its checks; None where the rows are those of this process alone."""
    if group is None:
        return None
    if isinstance(group, Ranks):
        ranks = group
    elif _is_group(group):
        ranks = Ranks(group)
    else:
        raise TypeError(f"{op}: group must be a process group, fastssl.distributed.Ranks or None, got {type(group).__name__}")
    world = world_size(ranks.group)
    if world < 0:
        raise ValueError(f"{op}: group must contain this process, rank {distributed.get_rank()}")
    if ranks.group is not None and not initialised():
        raise ValueError(f"{op}: group was given, but there is no process group")
    return ranks if world > 1 else None


def join(op: str, group: ProcessGroup | Ranks | None, rows: Tensor, **arguments) -> Joined | None:
    """Where several processes compute a loss together: how many rows (N, ...) each has. None in one process.

    Every process must call it with the same ``arguments`` and with rows of one dtype and width; otherwise every process raises.
    """
    ranks = as_ranks(op, group)
    if ranks is None:
        return None
    name, world = group_name(ranks.group), world_size(ranks.group)
    if ranks.even:
        counts = torch.full((world,), len(rows), dtype=torch.int64)
        first = torch.full((), distributed.get_rank(ranks.group) * len(rows), dtype=torch.int64, device=rows.device)
        total = torch.full((), float(world * len(rows)), dtype=accumulator_dtype(rows), device=rows.device)
    else:
        form = {"dtype": str(rows.dtype), "shape": ("N", *rows.shape[1:]), "transport": ranks.transport}
        form |= {key: _shown(value) for key, value in arguments.items()}
        counts, first, total = _meet(rows.detach(), op, ", ".join(f"{key} {value}" for key, value in form.items()), name)
    keep = ranks.even or not torch.compiler.is_compiling()
    return Joined(op, name, ranks.transport, world, counts, first, total, keep)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}"
    if isinstance(value, float) and torch.compiler.is_compiling():
        return "a number"  # a schedule would otherwise make a graph at each value
    return repr(value)


def _ranks_meet(rows: Tensor, op: str, form: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The number of rows of each process, those before this one's, and the total."""
    group = group_called(name)
    with named(op, "the exchange of batch sizes and arguments", name):
        call = f"{op} with {form}".encode()[:CALL_BYTES]
        table = told_by_all(torch.tensor([len(rows), zlib.crc32(call)]), group)
        counts, codes = table[:, 0].contiguous(), table[:, 1]
        if not (codes == codes[0]).all():
            texts = told_by_all(torch.tensor(list(call.ljust(CALL_BYTES)), dtype=torch.uint8), group)
            told = "; ".join(f"rank {r}: {bytes(text.tolist()).decode(errors='replace').strip()}" for r, text in enumerate(texts))
            raise RanksError(f"{op}: every process must make the same call, got {told}")
    before = torch.full((), int(counts[: group.rank()].sum()), dtype=torch.int64, device=rows.device)
    return counts, before, torch.full((), float(counts.sum()), dtype=accumulator_dtype(rows), device=rows.device)


def _fake_meet(rows: Tensor, op: str, form: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.empty(group_called(name).size(), dtype=torch.int64, device="cpu")
    return counts, rows.new_empty((), dtype=torch.int64), rows.new_empty((), dtype=accumulator_dtype(rows))


_meet = define_composite(
    "ranks_meet", "(Tensor rows, str op, str form, str name) -> (Tensor, Tensor, Tensor)", _fake_meet, _ranks_meet
)
