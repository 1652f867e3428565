"""Fifteen minutes on a GPU, in two calls:  python -m benchmarks.gpu --call first|second --out DIR

    prepare   on any machine, before: does the working tree travel, and does all of it run here, at tiny shapes on the CPU
    first     are the kernels right: device, build, smoke (every workload once against float64), tests/gpu, large tests
    second    how fast are they: NT-Xent, CLIP, MoCo, EMA and LARS against eager PyTorch, calls and graphs; then a profile

``benchmarks/gpu/plan.py`` holds the plan. A stage is one or more processes with limits. A stage that fails or hangs costs the other
stages nothing, and DIR is complete after each. Stages that the plan has no room for are run by name: ``--stages build tune steps``.

DIR gets summary.md, log.txt, results.tar.gz (result files, logs, lines of the tests, tuned tables, profiles) and copies of
tune.json, steps.json, steps_profile.txt and profile.txt. ``docs/gpu.md`` says what to do with them. Beside each measured time
stands a predicted one, ``Workload.predicted_ms``: for a loss it comes from the tiles' machine code (``benchmarks.tune.predict``),
for an update from its bytes at the rate of the memory.

Imports the other files of ``gpu``, which import ``core``, ``peers`` and ``report``.
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
from benchmarks.core.registry import WORKLOADS
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
#: Seconds of a command that names its stages.
SECONDS = 480.0
#: Seconds after which DIR is written again.
PACK_S = 30.0
#: Characters that are printed at the end: what a terminal keeps.
SCREEN_CHARS = 11_000


def _module_stage(run: Run, stage: str, title: str, keep: tuple[str, ...], *words: str) -> None:
    """Runs ``python -m benchmarks.<stage>`` with a folder and a time limit; its page, or the end of its output, is reported."""
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
    "device": gpu_build.device,
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
    """The parts, of at most ``most`` characters together: the longest ones are cut at their ends, to one length."""
    left, share = most, {}
    for done, part in enumerate(sorted(parts, key=len)):
        share[part] = min(len(part), left // (len(parts) - done))
        left -= share[part]
    return [part if len(part) <= share[part] else part[: max(0, share[part] - 20)] + "\n... (summary.md)" for part in parts]


def _dropped(run: Run) -> str:
    """What was not done, and why; first the reason why the call ended early, if it did."""
    ended = [f"**Ended early: {run.halted}.** Mend that and run the call again."] if run.halted else []
    lines = [f"- {line}" for line in run.dropped]
    if run.todo:  # this summary is read where the command was killed before its end
        return "\n".join([f"**Not ended when this was written: {', '.join(run.todo)}.**", *(["Dropped:", *lines] if lines else [])])
    return "\n".join([*ended, *(["Dropped:", *lines] if lines else ["Nothing was dropped."])])


def summarise(run: Run, title: str) -> str:
    """Writes summary.md. Returns what is printed: the reports of the stages, the steps that ended badly, what was dropped."""
    folder = run.folder("reports")
    parts = [path.read_text().strip() for path in (folder / f"{name}.md" for name in STAGES) if path.exists()]
    steps, dropped = _steps_table(run.steps), _dropped(run)
    tables = [report.workload_report(found) for found in gpu_bench.results(run)]
    run.write("summary.md", ("\n\n".join([f"# {title}", dropped, steps, *parts, *tables]) + "\n").encode())
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
    """Runs stages one after another, each within its limit, until the time is over or a stage says that the rest is pointless."""
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
        if run.halted or run.abandoned:
            for slot in todo:
                run.drop(slot.stage, "the call was ended early")
            todo = []
        run.todo = [slot.stage for slot in todo]
        summarise(run, title)
        run.pack()


@contextmanager
def _kept_whole(run: Run, title: str):
    """Writes DIR from time to time, since a run may be ended without warning. On SIGTERM the run ends with all that it has.

    The handler raises nothing: an exception in the middle of ``threading``'s own Python code can leave one of its locks taken.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(PACK_S):
            with suppress(OSError, ValueError):  # a file that is being written; the next time will do
                summarise(run, title)
                run.pack()

    before = signal.signal(signal.SIGTERM, lambda number, frame: run.kill())
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended = run.abandoned
        over.set()
        thread.join()
        run.abandon()
        run.say("\n" + summarise(run, title))
        run.pack()
        run.remove()
        signal.signal(signal.SIGTERM, before)
    if ended:
        raise SystemExit(128 + signal.SIGTERM)


def prepare(out: Path, minutes: float) -> int:
    """Refuses a working tree that would not travel, rehearses both calls on the CPU, then prints what to run on the machine."""
    try:
        found = gpu_prepare.carried()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"refused: git does not list the files that would travel: {error}")
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="builds, tests and measures on a machine with a GPU"
    )
    parser.add_argument(
        "--call", choices=("prepare", *CALLS, "both"), default="both", help="one part of the plan; default: both, in one command"
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="for which the GPU is lent, with its start; default 15")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go; only prepare runs without it")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="run these stages only, of any call or of none")
    parser.add_argument("--seconds", type=float, help=f"for this command; default: those of the call, {SECONDS:.0f} for --stages")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny shapes; default cuda")
    parser.add_argument("--quick", action="store_true", help="measure only the smallest shape of each workload")
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=(), metavar="PEER", help="default: eager; with --stages: all")
    parser.add_argument(
        "--works",
        dest="workloads",
        nargs="+",
        choices=WORKLOADS,
        default=tuple(WORKLOADS),
        metavar="WORK",
        help=", ".join(WORKLOADS),
    )
    parser.add_argument("--commit", help="the commit for the result files, where there is no .git")
    return parser


def main(argv: list[str]) -> int:
    """Runs the command; the exit status is 0 where every step of every stage ended well or was skipped for a reason."""
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
    run = Run(out, args.device, args.quick, tuple(args.peers), tuple(args.workloads), seconds, short=not args.stages)
    todo = gpu_plan.slots(sorted(args.stages, key=STAGES.index)) if args.stages else gpu_plan.slots_of(args.call)
    title = f"GPU run: {' '.join(args.stages or [args.call])}, commit {machine.commit()}"
    with _kept_whole(run, title):
        run.say(f"{title}, {seconds:.0f} s\n\n{gpu_plan.table(todo, seconds)}\n")
        run.unpack()
        run_stages(run, todo, title)
    return int(bool(run.halted) or any(step.bad for step in run.steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
