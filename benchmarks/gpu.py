"""Everything that needs a GPU, in one command of under nine minutes:  python -m benchmarks.gpu --out DIR

Stages, each a process with its own limit, so that one that fails or hangs costs the others nothing:

    facts    driver, versions, rates of a large copy and a large matrix product
    build    python setup.py build_ext --inplace
    bench    every work and shape against the peers that are importable, one process for each shape of a loss and for a group of
             updates
    tests    pytest tests/gpu
    tune     the kernels' candidate configurations (``benchmarks.tune``)
    summary  predicted and measured times side by side, pictures

DIR gets summary.md, tune.json, log.txt and results.tar.gz: the result file of each work and the pictures, to be unpacked into
benchmarks/results/<device>. The prediction beside each case, made before the run: ``gpu_sweeps`` sweeps (3U for NT-Xent) at
790 TFLOP/s; of an update, its bytes at 4.3 TB/s.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from benchmarks import report, runner
from benchmarks.registry import WORKS, shape_name

ROOT = Path(__file__).resolve().parents[1]
TOTAL_S = 520.0
STAGES = ("facts", "build", "bench", "tests", "tune", "summary")
#: Seconds a stage may take, and for "bench" one process.
LIMIT_S = {"facts": 40, "build": 110, "bench": 60, "tests": 180, "tune": 100, "summary": 30}
#: (work, shape, dtype) beside each work's own bfloat16 shapes.
EXTRA_CASES = (("nt_xent", (4096, 128), "float32"),)
#: Updates that share a process: they are short, its start is not.
GROUPS = (
    ("ema", "ema_shadow", "queue_push", "moco_step"),
    ("lars", "larc", "adamw", "adamw_ema"),
    ("mae_bundle",),
    ("mask_ids", "random_masking", "embed_visible"),
    ("restore_tokens", "patch_loss", "patch_loss_norm"),
)
#: Seconds that the benchmark leaves for the stages after it, and seconds of turns for a case.
RESERVE_S = 220
BUDGET_S = {"loss": 3, "update": 1}

_FACTS = """
import json, statistics, torch
from benchmarks import machine, timing
print(json.dumps(machine.describe("cuda")))
a = torch.randn(1 << 30, device="cuda"); b = torch.empty_like(a)
copy = lambda: b.copy_(a)
copy(); ms = statistics.median(timing.once_ms(copy, "cuda", 3) for _ in range(7))
print(f"copy of 4.3 GB: {2 * a.nbytes / ms / 1e9:.2f} TB/s read + written")
print(f"bfloat16 product of an 8192 cube: {timing.gpu_product_rate(torch.bfloat16) / 1e12:.0f} TFLOP/s")
"""


@dataclass
class Run:
    """The state of one command: where it writes, how much time is left, what each step did."""

    out: Path
    device: str = "cuda"
    quick: bool = False
    peers: tuple[str, ...] = ()
    works: tuple[str, ...] = tuple(WORKS)
    total_s: float = TOTAL_S
    started: float = field(default_factory=time.monotonic)
    steps: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def results(self) -> Path:
        return self.out / "results"

    def left_s(self) -> float:
        return self.total_s - (time.monotonic() - self.started)

    def say(self, text: str) -> None:
        print(text, flush=True)
        with (self.out / "log.txt").open("a") as log:
            log.write(text + "\n")

    def step(self, name: str, command: list[str], limit_s: float) -> bool:
        """Runs a process within its limit and the time left; its output goes to the log, its end to the screen."""
        limit_s = min(limit_s, self.left_s() - 5)
        if limit_s < 1:
            self.steps.append((name, "no time left", 0.0))
            return False
        shown = " ".join(part if "\n" not in part else "..." for part in command)
        self.say(f"=== {name}: {shown} (limit {limit_s:.0f} s)")
        begin = time.monotonic()
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s)
            text, state = done.stdout, "ok" if done.returncode == 0 else f"exit {done.returncode}"
        except subprocess.TimeoutExpired as late:
            text = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
            state = f"stopped after {limit_s:.0f} s"
        except OSError as error:
            text, state = str(error), "did not start"
        spent = time.monotonic() - begin
        self.say(text.rstrip())
        self.say(f"=== {name}: {state}, {spent:.1f} s, {self.left_s():.0f} s left")
        self.steps.append((name, state, spent))
        return state == "ok"


def _facts(run: Run) -> None:
    if run.device == "cuda":
        run.step("nvidia-smi", ["nvidia-smi"], 15)
        run.step("facts", [sys.executable, "-c", _FACTS], LIMIT_S["facts"])


def _build(run: Run) -> None:
    run.step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], LIMIT_S["build"])


@dataclass(frozen=True)
class Case:
    """What one process measures: a shape of a loss, or several updates at their own shapes (``shape`` None)."""

    works: tuple[str, ...]
    shape: tuple | None
    dtype: str

    def __str__(self) -> str:
        return " ".join((*self.works, *([shape_name(self.shape)] if self.shape else []), self.dtype))


def _cases(run: Run) -> list[Case]:
    """The first shape of every loss, the updates, the second of every loss, and so on: what does not fit is lost last."""
    works = [work for name, work in WORKS.items() if name in run.works]
    losses = [work for work in works if work.kind == "loss"]
    groups = [tuple(name for name in group if name in run.works) for group in GROUPS]
    updates = [Case(group, None, "bfloat16" if run.device == "cuda" else "float32") for group in groups if group]
    if run.device == "cpu" or run.quick:
        dtype = "float32" if run.device == "cpu" else "bfloat16"
        return [*(Case((work.name,), work.quick[0], dtype) for work in losses), *updates]
    rounds = zip_longest(*([Case((work.name,), shape, "bfloat16") for shape in work.gpu] for work in losses))
    first, *others = [[case for case in turn if case] for turn in rounds] or [[]]
    extra = [Case((work,), shape, dtype) for work, shape, dtype in EXTRA_CASES if work in run.works]
    return [*extra, *first, *updates, *(case for turn in others for case in turn)]


def _predictions(case: Case) -> str:
    """Predicted times on an H200, a line for each shape."""
    works = [WORKS[name] for name in case.works]
    pairs = [(work, shape) for work in works for shape in ([case.shape] if case.shape else work.gpu)]
    return "\n".join(f"predicted for an H200: {w.name} {shape_name(s)} {report.ms_text(w.predicted_ms(s))}" for w, s in pairs)


def _command(run: Run, case: Case) -> list[str]:
    command = [sys.executable, "-m", "fastssl.bench", *case.works, "--dtype", case.dtype]
    command += ["--device", run.device, "--budget", str(BUDGET_S[WORKS[case.works[0]].kind]), "--out", str(run.results)]
    if case.shape:
        command += ["--shapes", shape_name(case.shape)]
    elif run.quick or run.device == "cpu":
        command += ["--quick"]
    command += ["--graphs"] if run.device == "cuda" else ["--no-memory"]
    return command


def _bench(run: Run) -> None:
    """A process that fails with all peers is tried again with eager only: a peer may have broken the device context."""
    for case in _cases(run):
        if run.device == "cuda" and run.left_s() < min(RESERVE_S, run.total_s / 3):
            run.steps.append((f"bench {case}", "left out: the time is for the tests", 0.0))
            continue
        if run.device == "cuda":
            run.say(_predictions(case))
        command = _command(run, case)
        peers = ["--peers", *run.peers] if run.peers else []
        limit_s = LIMIT_S["bench"] * (1 if case.shape else 2)
        if not run.step(f"bench {case}", [*command, *peers], limit_s) and run.left_s() > 60:
            run.step(f"bench {case}, eager only", [*command, "--peers", "eager"], LIMIT_S["bench"] / 2)


def _tests(run: Run) -> None:
    if not (ROOT / "tests" / "gpu").is_dir():
        run.steps.append(("tests", "there is no tests/gpu", 0.0))
        return
    if importlib.util.find_spec("pytest") is None:
        run.steps.append(("tests", "pytest is not installed", 0.0))
        return
    run.step("tests", [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"], LIMIT_S["tests"])


def _tune(run: Run) -> None:
    limit_s = min(LIMIT_S["tune"], run.left_s() - 20)
    command = [sys.executable, "-m", "benchmarks.tune", "--out", str(run.out / "tune.json"), "--seconds", f"{limit_s - 15:.0f}"]
    run.step("tune", command, limit_s)


def comparison(found: dict) -> str:
    """Predicted and measured times of a work's cases, with the best peer."""
    rows = []
    for case in found["cases"]:
        entries = {entry["implementation"]: entry for entry in case["entries"]}
        ours, peers = entries[runner.OURS], [e for e in case["entries"] if "ms" in e and e["implementation"] not in runner.OWN]
        best = min(peers, key=lambda e: e["ms"], default=None)
        predicted = case.get("predicted_ms")
        rows.append(
            (
                report.shape_text(case["shape"]),
                case["dtype"],
                "" if predicted is None else report.ms_text(predicted),
                report.ms_text(ours["ms"]) if "ms" in ours else f"{ours['status']}: {ours['reason']}",
                report.ms_text(ours["graph_ms"]) if "graph_ms" in ours else "",
                "" if predicted is None or "ms" not in ours else f"{ours['ms'] / predicted:.2f}",
                report.ms_text(case["limit_ms"]),
                "" if best is None else f"{best['implementation']} {report.ms_text(best['ms'])}",
            )
        )
    head = (found["axes"], "dtype", "predicted", "fastssl", "CUDA graph", "over predicted", "limit", "best peer")
    return f"## {found['title']}\n\n{report.markdown(head, rows)}"


def _summary(run: Run) -> None:
    results = [runner.read(path) for path in (run.results / f"{name}.json" for name in WORKS) if path.exists()]
    steps = report.markdown(("step", "result", "seconds"), [(name, state, f"{s:.1f}") for name, state, s in run.steps])
    parts = ["# GPU run", *(comparison(found) for found in results), *(report.work_report(found) for found in results), steps]
    (run.out / "summary.md").write_text("\n\n".join(parts) + "\n")
    run.say("\n\n".join([*parts[1 : 1 + len(results)], steps]))


def _pack(run: Run) -> None:
    """results/ -> results.tar.gz, for those who can take only a few files away."""
    if run.results.is_dir():
        with tarfile.open(run.out / "results.tar.gz", "w:gz") as archive:
            archive.add(run.results, arcname=".")
        shutil.rmtree(run.results)


def _unpack(run: Run) -> None:
    """What an earlier command left in the same DIR."""
    if (run.out / "results.tar.gz").exists():
        with tarfile.open(run.out / "results.tar.gz") as archive:
            archive.extractall(run.results, filter="data")


ACTIONS: dict[str, Callable[[Run], None]] = dict(zip(STAGES, (_facts, _build, _bench, _tests, _tune, _summary), strict=True))


def main(argv: list[str]) -> int:
    """0 where every step of every stage ended well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="build, tests, benchmarks and tuner on a GPU")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny shapes")
    parser.add_argument("--quick", action="store_true", help="smallest shape of each work only")
    parser.add_argument("--peers", nargs="+", default=(), help="default: all that are importable")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=tuple(WORKS), metavar="WORK", help=", ".join(WORKS))
    args = parser.parse_args(argv)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, args.device, args.quick, tuple(args.peers), tuple(args.works), args.seconds)
    _unpack(run)
    for stage in STAGES:
        if stage not in args.stages:
            continue
        try:
            ACTIONS[stage](run)
        except Exception as error:  # one stage must not lose the others
            run.say(f"=== {stage}: {type(error).__name__}: {error}")
            run.steps.append((stage, f"{type(error).__name__}: {error}", 0.0))
    _pack(run)
    return int(any(state not in ("ok", "there is no tests/gpu") for _, state, _ in run.steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
