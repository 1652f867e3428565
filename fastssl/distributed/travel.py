"""How the columns of all processes come to the rows of each: the two transports of every loss over several processes.

Process r of W has N_r rows x and N_r columns y (N_r, D). Each process needs what its rows make of all M = sum N_r columns, and each
column the sum of what the rows of all processes make of it.

    gather   one all-gather of the columns, which the backward finds again; one reduce-scatter of their sums. Memory O(M D).
    ring     the columns travel around the ring in parts, in the forward and again in the backward, where their sums follow.
             Memory O(N D).

In both, ``visit(start, columns)`` is called with columns start, start + 1, ... of the joined batch. In the ring a part is on its
way while the one before it is visited. Every process visits its own part first and then those of lower ranks, so that all of them
are busy with different parts. Where the columns are the rows (``collect_pairs``), a process visits the W / 2 processes before it
alone, and what it makes of their rows goes home at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from .collectives import Shift, exchange, gather, group_called, reduce_scatter
from .failures import named

TRANSPORTS = ("gather", "ring")
#: Bytes of a part that travels: so many that on a GPU the computation with a part should take longer than Python takes to start it
#: (docs/scaling.md).
PART_BYTES = 1 << 24
#: Bytes of the rows that one call of a backward takes: its gradient of them is added to that of the parts before.
PIECE_BYTES = 1 << 25
#: On a CPU, where kernels start at once, parts and pieces are a sixteenth of a process's own columns and rows, so that what is in
#: flight is small beside them; but not smaller than this.
LEAST_BYTES = 1 << 18

Columns = Sequence[Tensor]  # (n, ...) each: rows y, and what else belongs to a column, such as its id
Visit = Callable[[int, list[Tensor]], None]
VisitSums = Callable[[int, list[Tensor]], list[Tensor]]
VisitPairs = Callable[[int, list[Tensor], slice], list[Tensor]]
Combine = Callable[[list[Tensor], list[Tensor]], list[Tensor]]


def add(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """The usual way to combine what two processes have for the same columns."""
    return [a.add_(b) for a, b in zip(sums, more, strict=True)]


def _filled(row: Tensor, count: int) -> Tensor:
    """(count, ...) with the row (1, ...) in each place."""
    return row.repeat(count, *(1,) * (row.dim() - 1))


def _arrive(sums: list[Tensor], combine: Combine, home: list[Tensor], where: slice) -> None:
    """Combines what came from other processes with some of the rows of ``home``, in place."""
    for t, new in zip(home, combine([t[where] for t in home], sums), strict=True):
        t[where] = new


class Route:
    """The way of the columns in one call: a transport, a group, and the number of rows of each process."""

    def __init__(self, op: str, transport: str, counts: Sequence[int], name: str):
        self.op, self.transport, self.counts, self.name = op, transport, list(counts), name
        self.group = group_called(name)
        self.rank, self.world = self.group.rank(), len(self.counts)
        self.starts = [sum(self.counts[:r]) for r in range(self.world)]

    def visit(self, columns: Columns, visit: Visit) -> list[Tensor]:
        """Calls ``visit`` for all columns of all processes. Returns them where they were gathered; otherwise nothing."""
        if self.transport == "gather":
            everyone = self.gathered(columns)
            visit(0, everyone)
            return everyone
        for part in range(self._rounds(columns)):
            self._circulate(part, columns, visit)
        return []

    def gathered(self, columns: Columns) -> list[Tensor]:
        """The columns of all processes, in rank order."""
        with named(self.op, "the gather of the columns", self.name):
            return [gather(t, self.counts, self.group) for t in columns]

    def collect(
        self, columns: Columns, visit: VisitSums, like: Columns, kept: Columns = (), combine: Combine | None = None
    ) -> list[Tensor]:
        """As ``visit``, where each call returns something for each of its columns; combined over processes, for the own columns.

        ``like`` are empty tensors (0, ...) with the dtypes and the further dimensions of what comes back. ``kept`` are the columns
        that an earlier ``visit`` returned, or the first ones of them. Without ``combine``, what the processes return is added.
        """
        if self.transport == "gather":
            sums = visit(0, [*kept, *self.gathered(columns[len(kept) :])])
            with named(self.op, "the sum over processes", self.name):
                return self._scatter([t.to(e.dtype) for t, e in zip(sums, like, strict=True)], combine)
        home = [e.new_empty((self.counts[self.rank], *e.shape[1:])) for e in like]
        for part in range(self._rounds(columns)):
            self._bring_home(part, columns, visit, combine or add, home)
        return home

    def collect_pairs(
        self,
        columns: Columns,
        visit: VisitPairs,
        home: list[Tensor],
        nothing: Columns,
        kept: Columns = (),
        combine: Combine | None = None,
    ) -> None:
        """As ``collect``, of columns that are the rows of the processes: each pair of processes is visited by one of the two.

        ``visit(start, columns, rows)`` is called for columns of other processes and some of the own rows. What other processes make
        of the own columns is combined with ``home`` (N, ...), in place. ``nothing`` are tensors (1, ...) that change nothing: 0, or
        the state of a row that has seen no column.
        """
        everything = slice(0, self.counts[self.rank])
        if self.transport == "gather":
            everyone = [*kept, *self.gathered(columns[len(kept) :])]
            sums = [_filled(t, sum(self.counts)) for t in nothing]
            for hop in range(1, self.world // 2 + 1):
                owner, rows, some = self._block(hop)
                part = slice(self.starts[owner] + some.start, self.starts[owner] + some.stop)
                if part.stop > part.start and rows.stop > rows.start:
                    for t, made in zip(sums, visit(part.start, [t[part] for t in everyone], rows), strict=True):
                        t[part] = made.to(t.dtype)
            with named(self.op, "the sum over processes", self.name):
                _arrive(self._scatter(sums, combine), combine or add, home, everything)
            return
        for turn in range(self._rounds(columns)):
            self._half_way(turn, columns, visit, home, nothing, combine or add)

    def _block(self, hop: int) -> tuple[int, slice, slice]:
        """What this process computes with the one ``hop`` before it: that process, own rows, and columns of that process.

        All of both, except where each is W / 2 before the other: then the lower one takes the first half of its rows, and the other
        one takes the second half of these as columns.
        """
        owner = (self.rank - hop) % self.world
        rows, some = slice(0, self.counts[self.rank]), slice(0, self.counts[owner])
        if 2 * hop < self.world:
            return owner, rows, some
        half = self.counts[min(self.rank, owner)] // 2
        return (owner, slice(0, half), some) if self.rank < owner else (owner, rows, slice(half, some.stop))

    def _half_way(
        self, part: int, columns: Columns, visit: VisitPairs, home: list[Tensor], nothing: Columns, combine: Combine
    ) -> None:
        """One part goes half around. What each process makes of it goes home at once, while the next process is at it."""
        rows_at_once = self._part_rows(columns)
        shift: Shift | None = self._send_on(self._own(part, columns, rows_at_once), self.rank, part, rows_at_once)
        first, count_here = self._piece(self.rank, part, rows_at_once)
        mine, coming = slice(first, first + count_here), None
        for hop in range(1, self.world // 2 + 1):
            assert shift is not None
            held, (owner, rows, some) = self._came(shift), self._block(hop)
            shift = self._send_on(held, owner, part, rows_at_once) if hop < self.world // 2 else None
            start, count = self._piece(owner, part, rows_at_once)
            inside = slice(max(some.start - start, 0), max(some.stop - start, 0))
            made = [_filled(t, count) for t in nothing]
            if len(held[0][inside]) and rows.stop > rows.start:
                place = self.starts[owner] + start + inside.start
                for t, found in zip(made, visit(place, [t[inside] for t in held], rows), strict=True):
                    t[inside] = found.to(t.dtype)
            if coming is not None:
                _arrive(self._came(coming), combine, home, mine)
            coming = self._shift(made, count_here, -hop)
        if coming is not None:
            _arrive(self._came(coming), combine, home, mine)

    def _scatter(self, sums: list[Tensor], combine: Combine | None) -> list[Tensor]:
        if combine is None:
            return [reduce_scatter(t, self.counts, self.group) for t in sums]
        by_process = list(zip(*(exchange(t, self.counts, self.group) for t in sums), strict=True))
        total = list(by_process[0])
        for more in by_process[1:]:
            total = combine(total, list(more))
        return total

    def _part_rows(self, columns: Columns) -> int:
        """The number of columns that travel at a time, the same in every process."""
        width = sum(math.prod(t.shape[1:]) * t.element_size() for t in columns)
        return _rows_at_once(max(self.counts), width, PART_BYTES, columns[0])

    def _rounds(self, columns: Columns) -> int:
        rows = self._part_rows(columns)
        return -(-max(self.counts) // rows)

    def _piece(self, owner: int, part: int, rows: int) -> tuple[int, int]:
        """The first column, and how many, of a process's part."""
        first = min(part * rows, self.counts[owner])
        return first, min(rows, self.counts[owner] - first)

    def _send_on(self, held: list[Tensor], owner: int, part: int, rows: int) -> Shift:
        """``held`` goes to the next process; the same part of the process before ``owner`` comes in."""
        return self._shift(held, self._piece((owner - 1) % self.world, part, rows)[1], 1)

    def _shift(self, outgoing: list[Tensor], coming: int, distance: int) -> Shift:
        """Sends ``outgoing`` that many processes ahead; ``coming`` rows of the same kinds come in."""
        incoming = [t.new_empty((coming, *t.shape[1:])) for t in outgoing]
        with named(self.op, "the ring of the columns", self.name):
            return Shift(outgoing, incoming, self.group, distance)

    def _came(self, shift: Shift) -> list[Tensor]:
        with named(self.op, "the ring of the columns", self.name):
            return shift.wait()

    def _own(self, part: int, columns: Columns, rows: int) -> list[Tensor]:
        first, count = self._piece(self.rank, part, rows)
        return [t[first : first + count] for t in columns]

    def _circulate(self, part: int, columns: Columns, visit: Visit) -> None:
        rows = self._part_rows(columns)
        held = self._own(part, columns, rows)
        for hop in range(self.world):
            owner = (self.rank - hop) % self.world
            shift = self._send_on(held, owner, part, rows) if hop + 1 < self.world else None
            first, count = self._piece(owner, part, rows)
            if count:
                visit(self.starts[owner] + first, held)
            if shift is not None:
                held = self._came(shift)

    def _bring_home(self, part: int, columns: Columns, visit: VisitSums, combine: Combine, home: list[Tensor]) -> None:
        """One part goes around, into ``home`` at the end. What each process adds follows one visit behind the columns."""
        rows = self._part_rows(columns)
        held, sums = self._own(part, columns, rows), None
        for hop in range(self.world):
            owner = (self.rank - hop) % self.world
            shift = self._send_on(held, owner, part, rows) if hop + 1 < self.world else None
            first, count = self._piece(owner, part, rows)
            made = [t.new_empty((0, *t.shape[1:])) for t in home]
            if count:
                made = [m.to(t.dtype) for m, t in zip(visit(self.starts[owner] + first, held), home, strict=True)]
            if sums is not None:
                made = combine(made, self._came(sums))
            sums = self._send_on(made, owner, part, rows)
            if shift is not None:
                held = self._came(shift)
        assert sums is not None
        first, count = self._piece(self.rank, part, rows)
        for t, piece in zip(home, self._came(sums), strict=True):
            t[first : first + count] = piece


def _rows_at_once(rows: int, width: int, most: int, like: Tensor) -> int:
    """How many of ``rows`` rows of ``width`` bytes go at once: at most ``most`` bytes of them, on the device of ``like``."""
    if like.device.type == "cpu":
        most = min(most, max(LEAST_BYTES, rows * width // 16))
    return max(1, min(rows, most // max(1, width)))


def pieces(rows: Tensor, transport: str) -> list[slice]:
    """Rows (N, D) in pieces, so that what is added up for all of them needs room for one piece only.

    A gather visits all columns at once and adds nothing up for its rows. With pieces it would add up for the columns, of which it
    has many more.
    """
    ring = transport == "ring"
    step = _rows_at_once(len(rows), rows.shape[1] * rows.element_size(), PIECE_BYTES, rows) if ring else max(1, len(rows))
    return [slice(first, min(first + step, len(rows))) for first in range(0, len(rows), step)]


def added(sums: list[Tensor], made: list[Tensor], like: Columns) -> list[Tensor]:
    """What the pieces before made of a part's columns, and what one more does, in the dtypes of ``like``."""
    made = [t.to(e.dtype) for t, e in zip(made, like, strict=True)]
    return add(sums, made) if sums else made
