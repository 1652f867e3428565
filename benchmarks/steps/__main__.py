"""Whole training steps before and after fastssl on synthetic pictures:  python -m benchmarks.steps [NAME ...] --out DIR

This measures what a step gains, and how much of its time and memory the replaced parts take. A method is timed only after its loss
and gradients agreed with float64, and after the first losses of its two sides, before and after fastssl, agreed with each other.
DIR gets steps.json, steps.md (tables) and steps_profile.txt (the kernels that take most of one step); cases that another command
left in the same DIR stay. After an error that leaves the device unusable, the other methods go on in a new process.

A case costs about ten steps: the first step of each side, with what it compiles; rounds of one step of each side; and one step of
each side under the profiler, in which memory is read too. The times below are expected on an H200, in bfloat16, with eager
encoders. A picture or pair takes three times the FLOP of its forward, with gradient caching four times:

    moco      1024 x (3 + 1) x 8.2 GFLOP = 34 TFLOP; ResNet-50 waits for memory at 2,700 pictures/s, forward alone 8,500: 0.5 s
    mae       1024 x 3 x (8.6 encoder + 10.7 decoder) GFLOP = 59 TFLOP at 200 TFLOP/s: 0.3 s; batch 4096 four times that
    simclr    8192 / 2,700 + 8192 / 8,500 s = 4 s
    clip      16,384 x 4 x (8.8 image + 6.0 text) GFLOP = 1.0 PFLOP at 250 TFLOP/s: 4 s

Ten steps of each are 100 s; setting up takes perhaps 10 s each. A batch runs through the encoders in pieces: ResNet-50 at 224 keeps
about 50 MB for a picture, MAE 80 MB, the towers of CLIP 30 MB for a picture or a text, so pieces of 1024 and 2048 take 50 to 80 GB.
A piece that does not fit is halved.

Imports the other files of ``steps``, and ``core``.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.core import machine, timing
from benchmarks.core.accuracy import SAME_OBJECTIVE
from benchmarks.core.prepared import release
from benchmarks.steps.clock import Clock, Reading
from benchmarks.steps.common import AFTER, BEFORE, Pair, Setting, Side, Size
from benchmarks.steps.contrast import clip, moco, simclr
from benchmarks.steps.mae import mae
from benchmarks.steps.report import SCHEMA, profiles, read, report

TOTAL_S = 200.0
MOST_ROUNDS = 7
#: Steps that a case takes at least: the first two, a round of two, two profiled, and one more for set-up and accuracy check.
LEAST_STEPS = 7
PROFILED = 12
MOST_HALVINGS = 2
LATE = "no time left"
SMALL = Size(16, 8, 32, queue=64, tokens=8, small=True)


@dataclass(frozen=True)
class Case:
    """A method at one size. ``expected_s``: seconds that one step is expected to take on an H200."""

    method: Callable[[Setting, Clock], Pair]
    title: str
    size: Size
    expected_s: float

    @property
    def name(self) -> str:
        return self.method.__name__


CASES = (
    Case(moco, "MoCo v2, ResNet-50", Size(1024, 1024, 224, queue=65536), 0.5),
    Case(mae, "MAE, ViT-B/16", Size(1024, 1024, 224), 0.3),
    Case(simclr, "SimCLR, ResNet-50", Size(4096, 1024, 224), 4.0),
    Case(clip, "CLIP, ViT-B/32", Size(16384, 2048, 224, tokens=77), 4.0),
    Case(mae, "MAE, ViT-B/16", Size(4096, 1024, 224), 1.2),
)
NAMES = tuple(dict.fromkeys(case.name for case in CASES))


@dataclass
class Run:
    out: Path
    device: str
    quick: bool
    total_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def left_s(self) -> float:
        return self.total_s - (time.monotonic() - self.started)

    def cases(self, names: tuple[str, ...]) -> list[Case]:
        if self.quick or self.device == "cpu":
            first = {case.name: case for case in reversed(CASES)}
            return [replace(first[name], title=f"{first[name].title} (small)", size=SMALL, expected_s=0.0) for name in names]
        return [case for case in CASES if case.name in names]

    def add(self, entry: dict) -> None:
        """Writes the files with one more entry, which replaces an earlier entry of the same case and machine."""
        path, described = self.out / "steps.json", machine.describe(self.device)
        old = read(path) if path.exists() else {}
        kept = old["cases"] if old.get("machine") == described else []
        key = lambda e: (e["name"], e["size"]["batch"])  # noqa: E731
        cases = [*(e for e in kept if key(e) != key(entry)), entry]
        found = {"schema": SCHEMA, "kind": "steps", "machine": described, "cases": cases}
        path.write_text(json.dumps(found, indent=1) + "\n")
        (self.out / "steps.md").write_text(report(found) + "\n")
        (self.out / "steps_profile.txt").write_text(profiles(found) + "\n")


def take(clock: Clock, side: Side, memory: bool = False) -> tuple[torch.Tensor, Reading]:
    """Takes one step; returns its loss and the clock's reading."""
    clock.begin(memory)
    loss = side.step()
    return loss, clock.finish()


def profiled(clock: Clock, side: Side) -> tuple[Reading, list[dict]]:
    """Takes one step under the profiler; returns its reading, with memory, and the kernels that took most of it."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = clock.device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        _, reading = take(clock, side, memory=True)
    cost = (lambda e: e.self_device_time_total) if on_gpu else (lambda e: e.self_cpu_time_total)
    events = [e for e in seen.key_averages() if cost(e) > 0 and not getattr(e, "is_user_annotation", False)]
    events.sort(key=cost, reverse=True)
    whole = sum(map(cost, events)) or 1.0
    top = [{"name": e.key, "count": e.count, "ms": cost(e) / 1e3, "share": cost(e) / whole} for e in events[:PROFILED]]
    return reading, top


def describe_side(side: Side, pair: Pair, readings: list[Reading], memory: Reading, kernels: list[dict]) -> dict:
    """What the result file says of a side: medians over its rounds."""
    parts = {part: statistics.median(r.parts_ms.get(part, 0.0) for r in readings) for part in readings[0].parts_ms}
    whole = timing.summarize([r.ms for r in readings])
    replaced = sum(parts[part] for part in pair.replaced)
    found = {"uses": side.uses, **asdict(whole), "parts_ms": parts, "kernels": kernels}
    found |= {"replaced_ms": replaced, "replaced_share": replaced / whole.ms, "loss_share": parts["loss"] / whole.ms}
    if memory.peak_mb is not None:
        found |= {"peak_mb": memory.peak_mb, "parts_peak_mb": memory.parts_peak_mb}
        found["loss_peak_share"] = memory.parts_peak_mb["loss"] / memory.peak_mb
    return found


def first_losses(pair: Pair, clock: Clock, dtype: torch.dtype) -> tuple[dict[str, float], str]:
    """(losses of both sides at the same weights and pictures, what is wrong with them or "")."""
    losses = {name: float(take(clock, side)[0]) for name, side in pair.sides.items()}
    before, after = losses[BEFORE], losses[AFTER]
    apart = abs(after - before) / max(abs(before), 1e-9)
    return losses, "" if apart <= SAME_OBJECTIVE[dtype] else f"first losses are {before:.6g} and {after:.6g}"


def rounds_of(pair: Pair, clock: Clock, until: float) -> dict[str, list[Reading]]:
    """Times both sides in rounds of one step each, every second round in reverse; at least one round.

    No round begins unless it and the profiled steps are likely to end before the monotonic time ``until``.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in pair.sides}
    longest = 0.0
    for index in range(MOST_ROUNDS):
        start = time.monotonic()
        if index and start + 2.5 * longest > until:
            break
        for name in pair.sides if index % 2 == 0 else reversed(pair.sides):
            readings[name].append(take(clock, pair.sides[name])[1])
        longest = max(longest, time.monotonic() - start)
    return readings


def measure(run: Run, case: Case, allowance_s: float) -> dict:
    """Measures a case; returns its part of the entry, with a status of "ok", "wrong" or ``LATE``."""
    start, clock = time.monotonic(), Clock(run.device)
    torch.manual_seed(0)
    pair = case.method(Setting(case.size, run.device, run.dtype), clock)
    checked = pair.check()
    found: dict = {"replaced": pair.replaced, "gate": {name: asdict(errors) for name, errors in checked.errors.items()}}
    wrong = checked.wrong
    if not wrong:
        found["first_loss"], wrong = first_losses(pair, clock, run.dtype)
    if wrong:
        return found | {"status": "wrong", "reason": wrong}
    if run.left_s() < 4 * case.expected_s:
        return found | {"status": LATE, "reason": "after the first steps"}
    readings = rounds_of(pair, clock, start + allowance_s)
    found["sides"] = {name: describe_side(side, pair, readings[name], *profiled(clock, side)) for name, side in pair.sides.items()}
    return found | {"status": "ok", "reason": ""}


def attempt(run: Run, case: Case, allowance_s: float) -> dict:
    """Calls ``measure`` and turns an exception into a status."""
    try:
        return measure(run, case, allowance_s)
    except (torch.OutOfMemoryError, MemoryError):
        return {"status": "out of memory", "reason": f"pieces of {case.size.micro}"}
    except Exception as error:  # a method must not lose the others
        first = (str(error).strip().splitlines() or [""])[0]
        return {"status": "failed", "reason": f"{type(error).__name__}: {first[:200]}"}


def run_case(run: Run, case: Case, allowance_s: float) -> dict:
    """The entry of a case. Where it runs out of memory, it is tried again in smaller pieces."""
    stamp, found = machine.run_stamp(), {"status": LATE, "reason": "before it began"}
    for halvings in range(MOST_HALVINGS + 1):
        if run.left_s() <= LEAST_STEPS * case.expected_s:
            break
        if halvings:
            case = replace(case, size=replace(case.size, micro=max(1, case.size.micro // 2)))
            print(f"{case.name}: out of memory, again in pieces of {case.size.micro}", flush=True)
        found = attempt(run, case, allowance_s)
        if found["status"] != "out of memory":
            break
        release(run.device)
    head = {"name": case.name, "title": case.title, "size": asdict(case.size), "dtype": str(run.dtype)[6:]}
    return head | stamp | {"expected_ms": 1e3 * case.expected_s} | found


def usable(device: str) -> bool:
    """Whether the device still works after a failed case, whose memory is given back first."""
    try:
        release(device)
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def go_on(run: Run, names: list[str]) -> None:
    """Replaces this process by a new one that measures the methods of these names. Does not return."""
    command = [sys.executable, "-m", "benchmarks.steps", *names, "--out", str(run.out), "--device", run.device]
    command += ["--seconds", f"{run.left_s():.0f}", *(["--quick"] if run.quick else [])]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def main(argv: list[str]) -> int:
    """Runs the command; the exit status is 0 where every case that there was time for was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps", description="measures training steps before and after fastssl"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with small encoders, float32")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for the whole command")
    parser.add_argument("--quick", action="store_true", help="small encoders")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"unknown step {unknown[0]!r}; choose from {', '.join(NAMES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "steps.json").exists():
        read(args.out / "steps.json")  # what cannot be added to is refused before anything is measured
    run = Run(args.out.resolve(), args.device, args.quick, args.seconds)
    cases = run.cases(tuple(args.names) or NAMES)
    for i, case in enumerate(cases):
        rest = sum(1 + c.expected_s for c in cases[i:])
        entry = run_case(run, case, run.left_s() * (1 + case.expected_s) / rest)
        print(f"{entry['name']} {entry['size']['batch']}: {entry['status']} {entry['reason']}", flush=True)
        run.add(entry)
        others = [c.name for c in cases[i + 1 :] if c.name != case.name]
        if entry["status"] == "failed" and others and not usable(run.device):
            go_on(run, list(dict.fromkeys(others)))
        release(run.device)
    print((run.out / "steps.md").read_text())
    return int(any(entry["status"] not in ("ok", LATE) for entry in read(run.out / "steps.json")["cases"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
