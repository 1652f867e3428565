"""The plan for fifteen minutes on a GPU: what each call runs, how long, and what is dropped where time runs short.

A machine that is lent by the minute takes 100 s to start, a command on it may take ten minutes, and it goes back after half a
minute without one. So the plan has two calls, and two minutes stay for a start that fails or for a call that must be repeated:

    0:00  start
    1:40  call "first", 450 s: are the kernels right
    9:10  its results are read
    9:30  call "second", 210 s: how fast are they
    13:00 spare

Within a call the stages follow one another. When a stage begins, it gets a limit: its share of the time that is left or its
``most_s``, whichever is more, but never so much that a later stage gets less than its ``least_s``. Where the ``least_s`` of all
stages do not fit together, the stage of least worth is dropped. So a stage that hangs makes later stages shorter, but they still
run, and a call never takes longer than its seconds.

Imports ``report`` for its tables.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.report.tables import markdown

#: Seconds of a call for each minute that is lent.
CALL_S = {"first": 30.0, "second": 14.0}
CALLS = {"first": ("device", "build", "smoke", "tests", "large"), "second": ("build", "bench", "profile")}
#: The workloads that the second call measures, against eager PyTorch.
BENCH_WORKLOADS = ("nt_xent", "clip", "moco", "ema", "lars")
#: Seconds kept back to pack the results, and within a stage to stop a process that does not end when it is asked to.
PACK_S, STOP_S = 5.0, 11.0


@dataclass(frozen=True)
class Slot:
    """The seconds of a stage: expected, its limit where there is time, the least that it starts with.

    Where time is short, the stage of least ``worth`` is dropped.
    """

    stage: str
    usual_s: float
    most_s: float
    least_s: float
    worth: int


SLOTS = {
    slot.stage: slot
    for slot in (
        Slot("wheels", 10, 40, 15, 3),
        Slot("device", 15, 30, 20, 4),
        Slot("build", 50, 120, 45, 9),
        Slot("smoke", 50, 110, 30, 8),
        Slot("tests", 180, 240, 40, 7),
        Slot("large", 80, 120, 30, 2),
        Slot("sanitize", 100, 150, 40, 1),
        Slot("warm", 70, 120, 30, 2),
        Slot("bench", 140, 150, 40, 6),
        Slot("profile", 45, 80, 30, 3),
        Slot("tune", 150, 200, 60, 5),
        Slot("steps", 200, 240, 60, 4),
    )
}


def slots(stages: Iterable[str]) -> list[Slot]:
    return [SLOTS[stage] for stage in stages]


def slots_of(call: str) -> list[Slot]:
    """The stages of a call; "both" is both calls in one command, for a machine where a command may take that long."""
    if call in CALLS:  # on the same machine, the second call finds the build of the first
        return [replace(slot, usual_s=5) if (call, slot.stage) == ("second", "build") else slot for slot in slots(CALLS[call])]
    return slots(dict.fromkeys(stage for stages in CALLS.values() for stage in stages))


def seconds_of(call: str, minutes: float) -> float:
    return minutes * (CALL_S[call] if call in CALL_S else sum(CALL_S.values()))


def kept(todo: Sequence[Slot], left_s: float) -> list[Slot]:
    """The stages whose least seconds fit together, in their order; those of least worth are dropped."""
    found = list(todo)
    while sum(slot.least_s for slot in found) > left_s:
        found.remove(min(found, key=lambda slot: slot.worth))
    return found


def limit_s(todo: Sequence[Slot], left_s: float) -> float:
    """Seconds that the first of these stages may take. The last stage takes all that is left."""
    first, behind = todo[0], todo[1:]
    share = left_s * first.usual_s / sum(slot.usual_s for slot in todo)
    return min(max(share, first.most_s) if behind else left_s, left_s - sum(slot.least_s for slot in behind))


def table(todo: Sequence[Slot], seconds: float) -> str:
    """A table: when each stage begins if all take what is expected, its limit then, and as which one it is dropped."""
    order = sorted(todo, key=lambda slot: slot.worth)
    left_s, rows, found = seconds - PACK_S, [], kept(todo, seconds - PACK_S)
    for slot in todo:
        if slot not in found:
            rows.append((slot.stage, "", f"{slot.usual_s:.0f}", "dropped", f"{slot.least_s:.0f}", str(order.index(slot) + 1)))
            continue
        limit = limit_s(found[found.index(slot) :], left_s)
        begin = seconds - PACK_S - left_s
        cells = (f"{begin // 60:.0f}:{begin % 60:02.0f}", f"{slot.usual_s:.0f}", f"{limit:.0f}", f"{slot.least_s:.0f}")
        rows.append((slot.stage, *cells, str(order.index(slot) + 1)))
        left_s -= min(slot.usual_s, limit)
    head = ("stage", "begins", "expected s", "given at most s", "at least s, or dropped", "dropped as number")
    return markdown(head, rows) + "\n\nWithin a stage the end is lost first: " + "; ".join(_LOST_FIRST) + "."


_LOST_FIRST = (
    "of the tests those that were not reached",
    "of the bench the shapes without a target",
    "of the profile the last case",
)
