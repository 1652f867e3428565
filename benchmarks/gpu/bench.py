"""Stages of a GPU run that run every work: is it right (``smoke``), and how fast (``bench``); which cases, in which order.

``smoke`` asks for truth, so its cases are dealt out to processes side by side. Timing is kept away from that: one process measures
one case after another, alone on the machine, since other processes' kernels would share the GPU with the timed ones, and their
compilers the cores, on which small steps wait. ``warm`` fills the compilers' caches on disk before that, where torch.compile and
many peers take part. A case that takes its process down, or hangs, is named and costs no other.
"""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.core import runner
from benchmarks.core.rates import KNOWN
from benchmarks.core.registry import WORKS, shape_name
from benchmarks.gpu.cases import CONTEXT_LOST, Case, write_cases
from benchmarks.gpu.plan import BENCH_WORKS
from benchmarks.gpu.run import NO_TIME, OK, Run, Step, python, read_lines, stop, stop_all, this_gpu
from benchmarks.peers import NAMES, load
from benchmarks.report import plots
from benchmarks.report import tables as report

#: (work, shape, dtype) beside each work's own shapes in bfloat16.
EXTRA_CASES = (("nt_xent", (4096, 128), "float32"),)
#: Shapes that are to be compared with many peers, beside those of the registry's targets.
FIRST = (("clip", (16384, 512)),)
#: Peers whose kernels are compiled at their first call.
COMPILED = ("compile", "linear_cross_entropy", "memeff", "inf_cl", "cut_cross_entropy", "liger", "siglip_kernel")
#: Similarities above which torch.compile is not warmed beside other processes: it holds several copies of them.
WARM_MATRIX = 1 << 29
WARM_PROCESSES = 12
#: Inductor's own worker processes, while many processes compile.
WARM_ENV = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
#: Processes of smoke, and the part of the works that may fail before the rest of a call is not worth its time.
SMOKE_PROCESSES, GLOBAL = 8, 0.5
#: Seconds for one case, in a call of the plan, and for one process to reach its first case.
CASE_S, SHORT_S, START_S = 90.0, 45.0, 90.0
#: Seconds of turns of a loss and of an update: at tiny shapes, in a call of the plan, else.
BUDGETS = {"tiny": (0.3, 0.2), "short": (1.5, 1.0), "": (3.0, 1.0)}
_POLL_S = 0.2


def _shapes(run: Run):
    """(work, index of the shape, shape, dtype) of this run."""
    for name in run.works:
        work = WORKS[name]
        if run.device == "cpu" or run.quick:
            dtype = "float32" if run.device == "cpu" else "bfloat16"
            yield work, 0, work.quick[0] if run.device == "cpu" else _smallest(work), dtype
            continue
        for index, shape in enumerate(work.gpu):
            yield work, index, shape, "bfloat16"
    if run.device == "cuda" and not run.quick:
        yield from ((WORKS[name], 0, shape, dtype) for name, shape, dtype in EXTRA_CASES if name in run.works)


def _smallest(work) -> tuple:
    return min(work.gpu, key=lambda shape: work.case.bytes(shape, 2))


def _dtype(case: Case) -> str:
    """What the case is measured in."""
    return str(WORKS[case.work].dtype(getattr(torch, case.dtype)))[6:]


def _targets(case: Case) -> list:
    return [target for target in WORKS[case.work].gpu_targets if (target.shape, target.dtype) == (case.shape, _dtype(case))]


def cases(run: Run) -> list[Case]:
    """Shapes with a target, the first of every work, the others; then again with torch.compile where it was left out.

    A case that is measured again replaces the earlier result. What does not fit into the time is lost from the end.
    """
    wanted = run.peers or NAMES
    ranked = []
    for order, (work, index, shape, dtype) in enumerate(_shapes(run)):
        case = Case(work.name, shape, dtype, tuple(wanted))
        case = replace(case, dtype=_dtype(case))
        targets = _targets(case) if run.device == "cuda" else []
        if not any(target.peer == "compile" for target in targets):
            case = replace(case, peers=tuple(name for name in wanted if name != "compile"))
        ranked.append(((0 if targets or (work.name, shape) in FIRST else 1 + index, order), case))
    first = [case for _, case in sorted(ranked, key=lambda pair: pair[0])]
    if "compile" not in wanted or run.device == "cpu" or run.quick:
        return first
    again = [case for case in first if "compile" not in case.peers and load("compile").concerns(WORKS[case.work])]
    return first + [replace(case, peers=tuple(wanted)) for case in again]


def predictions(found: list[Case], device: str = "") -> str:
    """Predicted times, a line for each shape, on this device, or on each kind where it is none of them."""
    kinds = [KNOWN[device]] if device in KNOWN else list(KNOWN.values())
    lines = {}
    for case in found:
        times = " or ".join(report.ms_text(WORKS[case.work].predicted_ms(case.shape, rates)) for rates in kinds)
        lines[case.work, case.shape] = f"{case.work} {shape_name(case.shape)} {times}"
    return f"predicted for an {' or '.join(rates.name for rates in kinds)}: " + ", ".join(lines.values())


def _command(run: Run, path: Path, progress: Path, *words: str) -> list[str]:
    loss_s, update_s = BUDGETS["tiny" if run.quick or run.device == "cpu" else "short" if run.short else ""]
    budget = ["--loss-budget", str(loss_s), "--update-budget", str(update_s)]
    return python("benchmarks.gpu.cases", str(path), "--progress", str(progress), "--device", run.device, *budget, *words)


def warm_cases(found: list[Case]) -> list[Case]:
    """Each kernel once: the cases with those of their peers that are worth warming and no earlier case of their shape has."""
    kept: list[Case] = []
    done: set[tuple] = set()
    for case in found:
        work = WORKS[case.work]
        rows, columns, _ = work.product(case.shape) if work.product else (0, 0, 0)
        large = work.kind == "loss" and rows * columns > WARM_MATRIX
        alone = replace(case, peers=())
        new = [peer for peer in case.peers if peer in COMPILED and load(peer).concerns(work) and (alone, peer) not in done]
        peers = tuple(peer for peer in new if not (peer == "compile" and large))
        if peers or (work.product is not None and (alone, runner.OURS) not in done):
            kept.append(replace(case, peers=peers))
        done |= {(alone, name) for name in (runner.OURS, *peers)}
    return kept


def warm(run: Run) -> None:
    """Every compiled kernel once, dealt out to processes side by side; a process that fails costs only its own compilations."""
    found = warm_cases(cases(run))
    if not found:
        run.skip("warm", "nothing compiles")
        return
    many = min(WARM_PROCESSES if run.device == "cuda" else 2, len(found))
    folder, jobs, progress = run.folder("cases"), [], {}
    for k in range(many):
        name = f"warm {k}"
        path, progress[name] = write_cases(found[k::many], folder / f"warm{k}.json"), folder / f"warm{k}.jsonl"
        progress[name].unlink(missing_ok=True)
        jobs.append((name, _command(run, path, progress[name], "--warm")))
    for k, step in enumerate(run.together(jobs, run.stage_s(), many, WARM_ENV)):
        ended = [line for line in read_lines(progress[step.name]) if line["state"] != "begin"]
        step.note = f"{len(ended)} of {len(found[k::many])} cases"
        if step.state.startswith("stopped"):
            step.state = f"skipped: {step.state}; the rest compiles when it is timed"


class Lane:
    """Cases that one process measures as long as it lives, then a next one from there on; ``lost``: those that took one down."""

    def __init__(self, run: Run, name: str, found: list[Case], *words: str, number: int = 0):
        self.run, self.name, self.found, self.words = run, name, found, words
        self.path = write_cases(found, run.folder("cases") / f"{name.replace(' ', '_')}_{number}.json")
        self.progress = self.path.with_suffix(".jsonl")
        self.first, self.lost, self.process = 0, [], None
        self.start()

    def start(self) -> None:
        self.progress.unlink(missing_ok=True)
        command = _command(self.run, self.path, self.progress, "--first", str(self.first), *self.words)
        self.seen, self.since = 0, time.monotonic()
        try:
            self.process, self.log = self.run.start(f"{self.path.stem} from {self.first}", command)
        except OSError as error:
            self.run.record(Step(f"{self.name} {self.found[self.first]}", f"did not start: {error}"))
            self.first += 1

    def overdue(self) -> str:
        """Why its process should be stopped, or ""."""
        lines = len(read_lines(self.progress))
        if lines > self.seen:
            self.seen, self.since = lines, time.monotonic()
        limit_s = START_S if not self.seen else SHORT_S if self.run.short else CASE_S
        return f"stopped after {limit_s:.0f} s" if time.monotonic() - self.since > limit_s else ""

    def turn(self) -> None:
        """One look at the process; where it has ended, its cases are recorded and the next process starts."""
        if self.process.poll() is None:
            if not (why := self.overdue()):
                return
        else:
            why = "" if self.process.returncode == 0 else f"exit {self.process.returncode}"
        stop(self.process, 0.0)
        started = self.settle(why)
        if why and started and self.first < len(self.found):
            self.start()

    def settle(self, why: str) -> bool:
        """Records what the process that ended has said, and the case that ended it; False where it could not even start."""
        self.run.live.discard(self.process)
        self.process = None
        said = read_lines(self.progress)
        ended = [line for line in said if line["state"] != "begin"]
        for line in ended:
            self.run.record(Step(f"{self.name} {self.found[line['case']]}", line["state"], line["seconds"], log=self.log))
        self.first += len(ended)
        if why == f"exit {CONTEXT_LOST}":
            self.lost.append(self.found[self.first - 1])
        elif why and why != NO_TIME and self.first < len(self.found):
            self.run.record(Step(f"{self.name} {self.found[self.first]}", why, log=self.log))
            self.lost.append(self.found[self.first])
            self.first += 1
        self.run.say(self.log.read_text(errors="replace")[-800:])
        return bool(said)


def serve(run: Run, lanes: list[Lane], until: float) -> list[Case]:
    """Looks after the lanes side by side until all have ended or the time has; returns the cases that took a process down."""
    try:
        while time.monotonic() < until and any(lane.process for lane in lanes):
            for lane in lanes:
                if lane.process:
                    lane.turn()
            time.sleep(_POLL_S)
    finally:
        left = [lane for lane in lanes if lane.process]
        stop_all([lane.process for lane in left])
    for lane in left:
        lane.settle(NO_TIME)
    state = NO_TIME if left else "not run"
    missed = [(lane.name, case) for lane in lanes for case in lane.found[lane.first :]]
    run.steps += [Step(f"{name} {case}", state) for name, case in missed]
    if missed:
        run.drop(", ".join(f"{name} {case}" for name, case in missed), state)
    return [case for lane in lanes for case in lane.lost]


def _has_result(run: Run, case: Case) -> bool:
    wanted = (case.work, list(case.shape), _dtype(case))
    return any((found["work"], c["shape"], c["dtype"]) == wanted for found in results(run) for c in found["cases"])


def bench(run: Run) -> None:
    until = time.monotonic() + run.stage_s()
    if run.short:
        works = tuple(name for name in run.works if name in BENCH_WORKS) or run.works
        run = replace(run, peers=run.peers or ("eager",), works=works)
    found = cases(run)
    if run.device == "cuda":
        run.say(predictions(found, (this_gpu() or ("",))[0]))
    words = ("--out", str(run.results))
    lost = serve(run, [Lane(run, "bench", found, *words)], until)
    lost = [replace(case, peers=("eager",)) for case in lost if case.peers != ("eager",) and not _has_result(run, case)]
    if lost and time.monotonic() < until:
        serve(run, [Lane(run, "bench eager only", lost, *words)], until)
    run.report("bench", "\n\n".join(map(comparison, results(run))))
    with suppress(ModuleNotFoundError):  # the figures are worth having without pictures
        for measured in results(run):
            plots.draw(measured, run.results / measured["machine"]["slug"])


def smoke(run: Run) -> None:
    """Each work at its smallest shape against float64, beside eager: does everything run, and is it right; a first idea of time."""
    small = replace(run, quick=True, peers=("eager",))
    found = cases(small)
    many = min(SMOKE_PROCESSES if run.device == "cuda" else 2, len(found))
    before = len(run.steps)
    words = ("--smoke", "--out", str(run.folder("smoke")))
    until = time.monotonic() + run.stage_s()
    serve(small, [Lane(small, "smoke", found[k::many], *words, number=k) for k in range(many)], until)
    tried = [step for step in run.steps[before:] if step.state not in (NO_TIME, "not run")]
    run.report("smoke", f"## Smoke: {smoke_table(results(run, 'smoke'), len(found))}")
    run.halted = global_failure(tried, found)


def smoke_table(found: list[dict], wanted: int) -> str:
    rows, right = [], 0
    for work in found:
        for case in work["cases"]:
            ours = next(entry for entry in case["entries"] if entry["implementation"] == runner.OURS)
            errors = ", ".join(f"{name.removesuffix('_error')} {ours[name]:.1e}" for name in ours if name.endswith("_error"))
            said = ours["status"] if ours["status"] == OK else f"{ours['status']}: {ours['reason']}"
            time_is = report.ms_text(ours["ms"]) if "ms" in ours else ""
            rows.append((work["work"], report.shape_text(case["shape"]), case["dtype"], said, errors, time_is))
            right += ours["status"] == OK
    head = ("work", "shape", "dtype", "against float64", "error", "time, others on the GPU")
    return f"{right} of {wanted} works right\n\n{report.markdown(head, rows)}"


def global_failure(steps: list[Step], found: list[Case]) -> str:
    """Why the tests would only repeat it: most works failed, or all losses (Triton), or all updates (CUDA C++); else ""."""
    kinds = {str(case): WORKS[case.work].kind for case in found}
    kind_of = lambda step: next((kind for case, kind in kinds.items() if step.name.endswith(case)), "")  # noqa: E731
    for kind, named in (("", "works"), ("loss", "losses"), ("update", "updates")):
        tried = [step for step in steps if kind in ("", kind_of(step))]
        bad = [step for step in tried if step.bad]
        if bad and len(bad) > (GLOBAL * len(tried) if not kind else len(tried) - 1):
            return f"{len(bad)} of {len(tried)} {named} failed in smoke, the first: {bad[0].name}: {bad[0].state}"
    return "" if steps or not found else "smoke ran no work"


def results(run: Run, folder: str = "results") -> list[dict]:
    """What was measured, by machine; a file that a stopped process left half written is passed over."""
    found = []
    for path in (each / f"{name}.json" for each in sorted((run.scratch / folder).glob("*/")) for name in WORKS):
        with suppress(ValueError, FileNotFoundError):
            found.append(runner.read(path))
    return found


def comparison(found: dict) -> str:
    """Predicted and measured times of a work's cases, with the best peer."""
    rows = []
    for case in found["cases"]:
        entries = {entry["implementation"]: entry for entry in case["entries"]}
        ours, peers = entries[runner.OURS], [e for e in case["entries"] if "ms" in e and e["implementation"] not in runner.OWN]
        best = min(peers, key=lambda e: e["ms"], default=None)
        predicted, (reached, _) = case.get("predicted_ms"), runner.device_ms(ours)
        rows.append(
            (
                report.shape_text(case["shape"]),
                case["dtype"],
                "" if predicted is None else report.ms_text(predicted),
                report.ms_text(ours["ms"]) if ours["status"] == OK else f"{ours['status']}: {ours['reason']}",
                report.ms_text(ours["graph_ms"]) if "graph_ms" in ours else "",
                "" if predicted is None or reached is None else f"{reached / predicted:.2f}",
                report.ms_text(case["limit_ms"]),
                "" if best is None else f"{best['implementation']} {report.ms_text(best['ms'])}",
                report.ms_text(best["graph_ms"]) if "graph_ms" in (best or {}) else "",
            )
        )
    head = (found["axes"], "dtype", "predicted", "fastssl", "CUDA graph", "over predicted", "limit", "best peer", "its graph")
    return f"## {found['title']}, {found['machine']['name']}\n\n{report.markdown(head, rows)}"
