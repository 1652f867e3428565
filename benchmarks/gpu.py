"""Everything that needs a GPU, in three commands of under nine minutes:  python -m benchmarks.gpu --out DIR --part PART

    truth   are the kernels right: build, tests/gpu in many processes, large tests, compute-sanitizer, every work once against eager
    speed   how fast: caches of the compilers filled side by side, then every work and shape against the importable peers
    tune    the tuner, profiles of the main kernels, whole training steps before and after
    all     everything, in one time

A stage is one or more processes with limits; one that fails or hangs costs the others nothing, and DIR is whole after each. It
gets summary.md, log.txt, results.tar.gz (result files, logs, lines of the tests, tuned tables, profiles) and copies of tune.json,
steps.json, steps_profile.txt and profile.txt. ``docs/gpu.md`` says what to do with them. The prediction beside each case:
``Work.predicted_ms``, from the tiles' machine code (``benchmarks.predict``); of an update, its bytes at 4.3 TB/s.
"""

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import gpu_bench, gpu_profile, gpu_tests, machine, report
from benchmarks.gpu_run import ROOT, Run, Step, python
from benchmarks.peers import NAMES
from benchmarks.registry import WORKS

#: Seconds of a part with the start of its machine left out; three starts of 100 s and the parts are half an hour.
SECONDS = {"truth": 520.0, "speed": 500.0, "tune": 480.0, "all": 520.0}
PARTS = {
    "truth": ("wheels", "facts", "build", "tests", "large", "sanitize", "smoke"),
    "speed": ("wheels", "facts", "build", "warm", "bench"),
    "tune": ("wheels", "build", "tune", "profile", "steps"),
}
STAGES = ("wheels", "facts", "build", "tests", "large", "sanitize", "smoke", "warm", "bench", "tune", "profile", "steps")
PARTS["all"] = STAGES
#: Shares of the time that is left; stages without one have a limit.
WEIGHTS = {"tests": 5, "large": 1.5, "sanitize": 2, "smoke": 1.5, "warm": 2.5, "bench": 7, "tune": 3.5, "profile": 2, "steps": 4.5}
LIMIT_S = {"wheels": 40, "facts": 40, "build": 150}
#: Wheels that the machine cannot fetch, one after another's failure.
WHEELS = ROOT / ".wheels"
#: Seconds after which DIR is written anew.
PACK_S = 30.0
#: Characters on the screen at the end: what a terminal keeps.
SCREEN_CHARS = 11_000

_FACTS = """
import json, os, shutil, statistics, subprocess, torch
from benchmarks import machine, timing
print(json.dumps(machine.describe("cuda")))
for tool in ("nvcc", "ncu", "compute-sanitizer", "cuobjdump"):
    path = shutil.which(tool)
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.strip().splitlines() if path else ["absent"]
    print(f"{tool}: {[line for line in said if 'ersion' in line or 'release' in line or line == 'absent'][-1:]}")
free, total = torch.cuda.mem_get_info()
print(f"{torch.cuda.get_device_capability()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {os.cpu_count()} cores")
a = torch.randn(1 << 30, device="cuda"); b = torch.empty_like(a)
copy = lambda: b.copy_(a)
copy(); ms = statistics.median(timing.once_ms(copy, "cuda", 3) for _ in range(7))
print(f"copy of 4.3 GB: {2 * a.nbytes / ms / 1e9:.2f} TB/s read + written")
x, y = a[: 3 << 20], b[: 3 << 20]
near = lambda: y.copy_(x)
near(); ms = statistics.median(timing.once_ms(near, "cuda", 50) for _ in range(7))
print(f"copy of 12.6 MB, out of L2 into L2: {2 * x.nbytes / ms / 1e9:.2f} TB/s read + written")
print(f"bfloat16 product of an 8192 cube: {timing.gpu_product_rate(torch.bfloat16) / 1e12:.0f} TFLOP/s")
"""


def _wheels(run: Run) -> None:
    """Each wheel into a folder of its own, so that one that does not fit costs no other."""
    wheels = sorted(WHEELS.glob("*.whl")) if WHEELS.is_dir() else []
    if not wheels:
        run.skip("wheels", f"there is no {WHEELS.name}/*.whl")
        return
    words = ("install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    folders = {f"wheel {wheel.stem}": run.site_folder(wheel.stem) for wheel in wheels}
    jobs = [
        (name, python("pip", *words, "--find-links", str(WHEELS), "--target", str(folder), str(wheel)))
        for (name, folder), wheel in zip(folders.items(), wheels, strict=True)
    ]
    done = run.together(jobs, LIMIT_S["wheels"], 8)
    run.site += [str(folders[step.name]) for step in done if step.ok]


def _facts(run: Run) -> None:
    if run.device != "cuda":
        run.skip("facts", "needs a GPU")
        return
    run.step("nvidia-smi", ["nvidia-smi"], 15)
    facts = run.step("facts", [sys.executable, "-c", _FACTS], LIMIT_S["facts"])
    run.report("facts", "## Facts\n\n```\n" + facts.output()[-3000:] + "\n```")


def spills(logs: list[str]) -> tuple[int, int, list[str]]:
    """(kernels that ptxas compiled, the most registers, the lines of those that spill)."""
    lines = [line for text in logs for line in text.splitlines()]
    used = [int(found[1]) for line in lines if (found := re.search(r"Used (\d+) registers", line))]
    spilled = [line.strip() for line in lines if "spill stores" in line and not re.search(r"\b0 bytes spill stores", line)]
    return len(used), max(used, default=0), spilled


def _this_gpu() -> dict[str, str]:
    """Lets the build compile for the GPU that is here alone; nothing where nvidia-smi does not name one."""
    asked = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True)
    found = re.match(r"\d+\.\d$", asked.stdout.strip().split("\n")[0])
    return {"FASTSSL_CUDA_ARCH": found[0]} if found else {}


def _build(run: Run) -> None:
    only = _this_gpu() if shutil.which("nvidia-smi") else {}
    step = run.step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], LIMIT_S["build"], only)
    kernels, registers, spilled = spills([log.read_text(errors="replace") for log in (ROOT / "build" / "cuda").glob("*.log")])
    step.note = f"{kernels} CUDA C++ kernels, at most {registers} registers, {len(spilled)} with spills"
    if step.bad or spilled:
        run.report("build", "## Build\n\n```\n" + "\n".join([*spilled[:10], step.output()[-3000:]]) + "\n```")
    run.step("info", python("fastssl", "info"), 60)


def _module_stage(run: Run, stage: str, title: str, keep: tuple[str, ...], *words: str) -> None:
    """``python -m benchmarks.<stage>`` with a folder and a time; its page, or its last words, go to the summary."""
    module, limit_s = f"benchmarks.{stage}", run.share_s(stage)
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
    "wheels": _wheels,
    "facts": _facts,
    "build": _build,
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


def summarise(run: Run, title: str) -> str:
    """Writes summary.md; returns the text for the screen: the stages' reports, then the steps that ended badly."""
    folder = run.folder("reports")
    parts = [path.read_text().strip() for path in (folder / f"{name}.md" for name in STAGES) if path.exists()]
    steps = _steps_table(run.steps)
    works = [report.work_report(found) for found in gpu_bench.results(run)]
    (run.out / "summary.md").write_text("\n\n".join([f"# {title}", steps, *parts, *works]) + "\n")
    short = steps if len(steps) < SCREEN_CHARS // 3 else _steps_table([step for step in run.steps if step.bad])
    return "\n\n".join([*fit(parts, SCREEN_CHARS * 2 // 3), short[: SCREEN_CHARS // 3]])


def _run_stages(run: Run, stages: list[str], title: str) -> None:
    run.pending = {stage: WEIGHTS[stage] for stage in stages if stage in WEIGHTS}
    for stage in stages:
        try:
            ACTIONS[stage](run)
        except Exception as error:  # one stage must not lose the others
            run.record(Step(stage, f"{type(error).__name__}: {error}"))
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


def main(argv: list[str]) -> int:
    """0 where every step of every stage ended well or was skipped for a reason."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="build, tests, benchmarks and tuner on a GPU")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--part", choices=PARTS, default="all")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="default: those of the part")
    parser.add_argument("--seconds", type=float, help=f"for everything; default: {SECONDS}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny shapes")
    parser.add_argument("--quick", action="store_true", help="smallest shape of each work only")
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=(), metavar="PEER", help="default: all that are importable")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=tuple(WORKS), metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--commit", help="for the result files, where there is no .git")
    args = parser.parse_args(argv)
    if args.commit:
        os.environ[machine.COMMIT] = args.commit
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    seconds = args.seconds or SECONDS[args.part]
    run = Run(out, args.device, args.quick, tuple(args.peers), tuple(args.works), seconds)
    stages = [stage for stage in STAGES if stage in (args.stages or PARTS[args.part])]
    title = f"GPU run: {args.part if not args.stages else ' '.join(stages)}, commit {machine.commit()}"
    with _kept_whole(run, title):
        run.unpack()
        _run_stages(run, stages, title)
    return int(any(step.bad for step in run.steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
