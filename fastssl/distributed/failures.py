"""What a process says when others of its group are gone, or do not come.

A collective fails in all processes that take part, at once where a connection broke, or when the group's timeout is over. torch
then names an address. Which process did not take part is found out afterwards: each one that failed leaves a note in the store
where the processes met, waits a moment, and names those that left none.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator

from torch import distributed

from .collectives import group_called

PATIENCE = 2.0  # seconds in which the others that failed leave their notes
RECENT = 10.0  # seconds that a note counts


class RanksError(RuntimeError):
    """Processes that compute a loss together no longer do: one of them ended, did not come, or came with something else.

    It derives from RuntimeError, which is what torch raises.

    Examples:
        >>> issubclass(RanksError, RuntimeError)
        True
    """


@contextlib.contextmanager
def named(op: str, doing: str, name: str) -> Iterator[None]:
    """Turns an error of a collective of the group ``name`` into one that says what failed, and which processes were missing."""
    try:
        yield
    except RanksError:
        raise
    except RuntimeError as error:  # torch.distributed's own errors derive from it
        raise RanksError(
            f"{op}: {doing} failed in rank {_rank(name)}: {_missing(name)}. torch says: {_first_line(error)}"
        ) from error


def _rank(name: str) -> str:
    try:
        group = group_called(name)
        return f"{group.rank()} of {group.size()}"
    except Exception:
        return "?"


def _missing(name: str) -> str:
    """Which processes left no note that they failed too. Those ended, or do something else."""
    try:
        group, store = group_called(name), distributed.distributed_c10d._get_default_store()
        rank, world = group.rank(), group.size()
        key = f"fastssl/failed/{name}"
        store.set(f"{key}/{rank}", str(time.time()))
        deadline, others = time.monotonic() + PATIENCE, set(range(world)) - {rank}
        while others and time.monotonic() < deadline:
            others -= {r for r in others if store.check([f"{key}/{r}"]) and _is_recent(store.get(f"{key}/{r}"))}
            time.sleep(0.05)
    except Exception as error:
        return f"the store of the processes does not answer ({_first_line(error)}), so the process that holds it has probably ended"
    if not others:
        return "every process failed alike"
    ranks = ", ".join(map(str, sorted(others)))
    reasons = "it has ended, hangs, or makes other calls (a loss must be called equally often everywhere)"
    return f"rank {ranks} did not take part; {reasons}"


def _is_recent(note: bytes) -> bool:
    """Whether a note is of this failure, not of an earlier one that the processes survived. Clocks differ by seconds at most."""
    return abs(time.time() - float(note)) < RECENT


def _first_line(error: BaseException) -> str:
    """What an error says, without the place in torch's sources."""
    text = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip()) or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".")
