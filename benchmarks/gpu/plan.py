"""Fifteen minutes on a GPU, planned: what each call runs, how long, and what is dropped where time runs short.

A machine that is lent by the minute takes 100 s to start, a command of it may take ten minutes, and it goes back after half a
minute without one. So the plan is two calls, and two minutes stay for a start that fails or for one call again:

    0:00 start   1:40 call "first", 450 s: is it right   9:10 results, a look   9:30 call "second", 210 s: how fast   13:00 spare

Within a call the stages follow one another. Each has a limit when it begins: its share of what is left or its ``most_s``, whichever
is more, but never so much that one behind it gets less than its ``least_s``. Where not even the least of all fits, the stage of
least worth is dropped. So a stage that hangs costs others their comfort, not their place, and a call never outlasts its seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.report.tables import markdown

#: Seconds of a call for each minute that is lent.
CALL_S = {"first": 30.0, "second": 14.0}
CALLS = {"first": ("facts", "build", "smoke", "tests", "large"), "second": ("build", "bench", "profile")}
#: The works that the second call measures, against eager PyTorch.
BENCH_WORKS = ("nt_xent", "clip", "moco", "ema", "lars")
#: Seconds kept back to pack the results, and within a stage to stop what does not heed its end.
PACK_S, STOP_S = 5.0, 11.0


@dataclass(frozen=True)
class Slot:
    """A stage's seconds: expected, its limit where time is not short, the least it starts with. The least worth goes first."""

    stage: str
    usual_s: float
    most_s: float
    least_s: float
    worth: int


SLOTS = {
    slot.stage: slot
    for slot in (
        Slot("wheels", 10, 40, 15, 3),
        Slot("facts", 15, 30, 20, 4),
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
    """The stages of a call; "both" is one command, on a machine where it may take that long."""
    if call in CALLS:  # the second finds the build of the first, where the machine is still there
        return [replace(slot, usual_s=5) if (call, slot.stage) == ("second", "build") else slot for slot in slots(CALLS[call])]
    return slots(dict.fromkeys(stage for stages in CALLS.values() for stage in stages))


def seconds_of(call: str, minutes: float) -> float:
    return minutes * (CALL_S[call] if call in CALL_S else sum(CALL_S.values()))


def kept(todo: Sequence[Slot], left_s: float) -> list[Slot]:
    """Those whose least seconds fit together, in their order: the least worth are dropped."""
    found = list(todo)
    while sum(slot.least_s for slot in found) > left_s:
        found.remove(min(found, key=lambda slot: slot.worth))
    return found


def limit_s(todo: Sequence[Slot], left_s: float) -> float:
    """Seconds that the first of them may take; the last takes all that is left."""
    first, behind = todo[0], todo[1:]
    share = left_s * first.usual_s / sum(slot.usual_s for slot in todo)
    return min(max(share, first.most_s) if behind else left_s, left_s - sum(slot.least_s for slot in behind))


def table(todo: Sequence[Slot], seconds: float) -> str:
    """When each stage begins if all take what is expected, its limit then, and when it is dropped."""
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
