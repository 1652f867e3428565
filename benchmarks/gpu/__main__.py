"""Fifteen minutes on a GPU, in two calls:  python -m benchmarks.gpu --call first|second --out DIR

    prepare   on any machine, before: does the working tree travel, and does all of it run here, at tiny shapes on the CPU
    first     is it right: facts, build, smoke (every work once against float64), tests/gpu in many processes, large tests
    second    how fast: NT-Xent, CLIP, MoCo, EMA and LARS against eager PyTorch, calls and graphs; then a profile

``benchmarks/gpu/plan.py`` holds the plan. A stage is one or more processes with limits; one that fails or hangs costs the others
nothing, and DIR is whole after each. What the plan has no room for are stages of their own: ``--stages build tune steps``.
DIR gets summary.md, log.txt, results.tar.gz (result files, logs, lines of the tests, tuned tables, profiles) and copies of
tune.json, steps.json, steps_profile.txt and profile.txt. ``docs/gpu.md`` says what to do with them. The prediction beside each
case: ``Work.predicted_ms``, from the tiles' machine code (``benchmarks.tune.predict``); of an update, its bytes at the memory's
rate.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.core import machine
from benchmarks.core.registry import WORKS
from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import build as gpu_build
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import prepare as gpu_prepare
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu import tests as gpu_tests
from benchmarks.gpu.plan import CALLS, Slot
from benchmarks.gpu.run import Run, Step, python, stop_all
from benchmarks.peers import NAMES
from benchmarks.report import tables as report

STAGES = tuple(gpu_plan.SLOTS)
#: Seconds of a command with single stages.
SECONDS = 480.0
#: Seconds after which DIR is written anew.
PACK_S = 30.0
#: Characters on the screen at the end: what a terminal keeps.
SCREEN_CHARS = 11_000


def _module_stage(run: Run, stage: str, title: str, keep: tuple[str, ...], *words: str) -> None:
    """``python -m benchmarks.<stage>`` with a folder and a time; its page, or its last words, go to the summary."""
    module, limit_s = f"benchmarks.{stage}", run.stage_s()
    if importlib.util.find_spec(module) is None:
        run.skip(stage, f"there is no {module}")
        return
    folder = run.folder(stage)
    step = run.step(stage, python(module, "--out", str(folder), "--seconds", f"{max(1.0, limit_s - 10):.0f}", *words), limit_s)
    for name in keep:
        run.keep(folder / name)
    page = folder / f"{stage}.md"
    text = page.read_text().strip() if step.ok and page.exists() else f"```\n{step.output()[-3500:].strip()}\n```"
    run.report(stage, f"## {title}\n\n{text}")


def _tune(run: Run) -> None:
    _module_stage(run, "tune", "Tuner", ("tune.json",), *(["--device", "cpu"] if run.device == "cpu" else []))


def _steps(run: Run) -> None:
    words = ["--device", run.device, *(["--quick"] if run.device == "cpu" or run.quick else [])]
    _module_stage(run, "steps", "Whole training steps", ("steps.json", "steps_profile.txt"), *words)


ACTIONS: dict[str, Callable[[Run], None]] = {
    "wheels": gpu_build.wheels,
    "facts": gpu_build.facts,
    "build": gpu_build.build,
    "tests": gpu_tests.tests,
    "large": gpu_tests.large,
    "sanitize": gpu_tests.sanitize,
    "smoke": gpu_bench.smoke,
    "warm": gpu_bench.warm,
    "bench": gpu_bench.bench,
    "tune": _tune,
    "profile": gpu_profile.profile,
    "steps": _steps,
}


def _steps_table(steps: list[Step]) -> str:
    rows = [(step.name, step.state, f"{step.seconds:.1f}", step.note) for step in steps]
    return report.markdown(("step", "result", "seconds", "note"), rows)


def fit(parts: list[str], most: int) -> list[str]:
    """The parts, the longest ones cut at their ends to one length so that all have at most ``most`` characters together."""
    left, share = most, {}
    for done, part in enumerate(sorted(parts, key=len)):
        share[part] = min(len(part), left // (len(parts) - done))
        left -= share[part]
    return [part if len(part) <= share[part] else part[: max(0, share[part] - 20)] + "\n... (summary.md)" for part in parts]


def _dropped(run: Run) -> str:
    """What was not done, with the reason why the call ended early first."""
    ended = [f"**Ended early: {run.halted}.** Mend that and run the call again."] if run.halted else []
    lines = [f"- {line}" for line in run.dropped]
    if run.todo:  # what is read later is the summary of a command that was killed here
        return "\n".join([f"**Not ended when this was written: {', '.join(run.todo)}.**", *(["Dropped:", *lines] if lines else [])])
    return "\n".join([*ended, *(["Dropped:", *lines] if lines else ["Nothing was dropped."])])


def summarise(run: Run, title: str) -> str:
    """Writes summary.md; returns the text for the screen: the stages' reports, the steps that ended badly, what was dropped."""
    folder = run.folder("reports")
    parts = [path.read_text().strip() for path in (folder / f"{name}.md" for name in STAGES) if path.exists()]
    steps, dropped = _steps_table(run.steps), _dropped(run)
    works = [report.workload_report(found) for found in gpu_bench.results(run)]
    run.write("summary.md", ("\n\n".join([f"# {title}", dropped, steps, *parts, *works]) + "\n").encode())
    short = steps if len(steps) < SCREEN_CHARS // 3 else _steps_table([step for step in run.steps if step.bad])
    return "\n\n".join([*fit(parts, SCREEN_CHARS * 2 // 3), short[: SCREEN_CHARS // 3], dropped[:2000]])


def _one_stage(run: Run, stage: str) -> None:
    try:
        ACTIONS[stage](run)
    except Exception as error:  # one stage must not lose the others
        run.record(Step(stage, f"{type(error).__name__}: {error}"))
        stop_all(list(run.live))
        run.live.clear()


def run_stages(run: Run, todo: list[Slot], title: str) -> None:
    """One after another, each within its limit of the plan, until the time is over or a stage says that the rest is in vain."""
    while todo:
        left_s = run.left_s()
        kept = gpu_plan.kept(todo, left_s)
        for slot in todo:
            if slot not in kept:
                run.drop(slot.stage, f"it needs {slot.least_s:.0f} s, and {left_s:.0f} s are left for all that is wanted")
        if not kept:
            run.todo = []
            break
        run.todo = [slot.stage for slot in kept]
        run.stage_until = time.monotonic() + gpu_plan.limit_s(kept, left_s)
        _one_stage(run, kept[0].stage)
        todo = kept[1:]
        if run.halted:
            for slot in todo:
                run.drop(slot.stage, "the call was ended early")
            todo = []
        run.todo = [slot.stage for slot in todo]
        summarise(run, title)
        run.pack()


@contextmanager
def _kept_whole(run: Run, title: str):
    """DIR is written anew from time to time, for a run that is ended without a warning; a SIGTERM ends it with all it has."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(PACK_S):
            with suppress(OSError, ValueError):  # a file that is being written; the next turn will do
                summarise(run, title)
                run.pack()

    def stopped(number, frame):
        run.abandon()
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stopped)
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
        run.abandon()
        run.say("\n" + summarise(run, title))
        run.pack()
        run.remove()


def prepare(out: Path, minutes: float) -> int:
    """Refuses a tree that would not travel; then both calls on the CPU, within their own seconds; says what to run."""
    try:
        found = gpu_prepare.carried()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"refused: git does not say what would travel: {error}")
        return 1
    print(f"{len(found)} files, {sum(size for size, _ in found) / 2**20:.1f} MiB would travel", flush=True)
    if refused := gpu_prepare.check_carried(found):
        print(f"refused: {refused}")
        return 1
    codes = {call: main(["--call", call, "--minutes", str(minutes), "--device", "cpu", "--out", str(out / call)]) for call in CALLS}
    bad = [call for call, code in codes.items() if code]
    print(f"\nThe rehearsal {'failed: ' + ', '.join(bad) if bad else 'went well'}: {out}. On the machine:\n")
    print("\n".join(gpu_prepare.commands(minutes)))
    return int(bool(bad))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="build, tests, benchmarks and tuner on a GPU")
    parser.add_argument("--call", choices=("prepare", *CALLS, "both"), default="both", help="default: both in one command")
    parser.add_argument("--minutes", type=float, default=15.0, help="for which the GPU is lent, its start included; default 15")
    parser.add_argument("--out", type=Path, metavar="DIR", help="needed, but by prepare")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="these alone, of any call or of none")
    parser.add_argument("--seconds", type=float, help=f"for this command; default: the call's, {SECONDS:.0f} for --stages")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny shapes")
    parser.add_argument("--quick", action="store_true", help="smallest shape of each work only")
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=(), metavar="PEER", help="default: eager; --stages: all")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=tuple(WORKS), metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--commit", help="for the result files, where there is no .git")
    return parser


def main(argv: list[str]) -> int:
    """0 where every step of every stage ended well or was skipped for a reason."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.commit:
        os.environ[machine.COMMIT] = args.commit
    if args.call == "prepare" and not args.stages:
        return prepare((args.out or Path(tempfile.mkdtemp(prefix="fastssl-rehearsal-"))).resolve(), args.minutes)
    if args.out is None:
        parser.error("--out DIR is needed")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    seconds = args.seconds or (SECONDS if args.stages else gpu_plan.seconds_of(args.call, args.minutes))
    run = Run(out, args.device, args.quick, tuple(args.peers), tuple(args.works), seconds, short=not args.stages)
    todo = gpu_plan.slots(sorted(args.stages, key=STAGES.index)) if args.stages else gpu_plan.slots_of(args.call)
    title = f"GPU run: {' '.join(args.stages or [args.call])}, commit {machine.commit()}"
    with _kept_whole(run, title):
        run.say(f"{title}, {seconds:.0f} s\n\n{gpu_plan.table(todo, seconds)}\n")
        run.unpack()
        run_stages(run, todo, title)
    return int(bool(run.halted) or any(step.bad for step in run.steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
