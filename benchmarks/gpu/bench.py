"""Stages of a GPU run that run all workloads: are they right (``smoke``), how fast are they (``bench``); in which order.

``smoke`` compares results, so its cases are dealt out to processes side by side. ``bench`` measures one case after another in one
process that is alone on the machine: kernels of other processes would share the GPU with the timed ones, and their compilers would
share the cores, on which small steps wait. Before that, where torch.compile and many peers take part, ``warm`` fills the compilers'
caches on disk. A case that takes its process down, or hangs, is named and costs no other case its place.

Imports ``cases``, ``plan`` and ``run``, and ``core``, ``peers`` and ``report``.
"""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.core import runner
from benchmarks.core.rates import KNOWN
from benchmarks.core.registry import WORKLOADS, shape_name
from benchmarks.gpu.cases import CONTEXT_LOST, Case, write_cases
from benchmarks.gpu.plan import BENCH_WORKLOADS
from benchmarks.gpu.run import NO_TIME, OK, Run, Step, python, read_lines, stop, stop_all, this_gpu
from benchmarks.peers import NAMES, load
from benchmarks.report import plots
from benchmarks.report import tables as report

#: (workload, shape, dtype) beside the shapes that each workload has in bfloat16.
EXTRA_CASES = (("nt_xent", (4096, 128), "float32"),)
#: Shapes that come first as if they had a target, because many peers are compared there.
FIRST = (("clip", (16384, 512)),)
#: Peers whose kernels are compiled at their first call.
COMPILED = ("compile", "linear_cross_entropy", "memeff", "inf_cl", "cut_cross_entropy", "liger", "siglip_kernel")
#: Number of similarities above which torch.compile does not run beside other processes: it holds several copies of them.
WARM_MATRIX = 1 << 29
WARM_PROCESSES = 12
#: Inductor starts no worker processes of its own while many processes compile.
WARM_ENV = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
#: Processes of smoke, and the part of the workloads that may fail before the rest of a call is not worth its time.
SMOKE_PROCESSES, GLOBAL = 8, 0.5
#: Seconds for one case, for one case in a call of the plan, and for a process to reach its first case.
CASE_S, SHORT_S, START_S = 90.0, 45.0, 90.0
#: Seconds for which a loss and an update are timed: at tiny shapes, in a call of the plan, in other commands.
BUDGETS = {"tiny": (0.3, 0.2), "short": (1.5, 1.0), "": (3.0, 1.0)}
_POLL_S = 0.2


def _shapes(run: Run):
    """(workload, index of the shape, shape, dtype) of this run."""
    for name in run.workloads:
        workload = WORKLOADS[name]
        if run.device == "cpu" or run.quick:
            dtype = "float32" if run.device == "cpu" else "bfloat16"
            yield workload, 0, workload.quick[0] if run.device == "cpu" else _smallest(workload), dtype
            continue
        for index, shape in enumerate(workload.gpu):
            yield workload, index, shape, "bfloat16"
    if run.device == "cuda" and not run.quick:
        yield from ((WORKLOADS[name], 0, shape, dtype) for name, shape, dtype in EXTRA_CASES if name in run.workloads)


def _smallest(workload) -> tuple:
    return min(workload.gpu, key=lambda shape: workload.case.bytes(shape, 2))


def _dtype(case: Case) -> str:
    """The dtype that the case is measured in."""
    return str(WORKLOADS[case.workload].dtype(getattr(torch, case.dtype)))[6:]


def _targets(case: Case) -> list:
    return [target for target in WORKLOADS[case.workload].gpu_targets if (target.shape, target.dtype) == (case.shape, _dtype(case))]


def cases(run: Run) -> list[Case]:
    """The cases in the order in which they are worth having: shapes with a target, the first shape of each workload, the others.

    After these, the cases that left torch.compile out come again, with it; the later result replaces the earlier one. Where the
    time is over, the rest of the list is lost.
    """
    wanted = run.peers or NAMES
    ranked = []
    for order, (workload, index, shape, dtype) in enumerate(_shapes(run)):
        case = Case(workload.name, shape, dtype, tuple(wanted))
        case = replace(case, dtype=_dtype(case))
        targets = _targets(case) if run.device == "cuda" else []
        if not any(target.peer == "compile" for target in targets):
            case = replace(case, peers=tuple(name for name in wanted if name != "compile"))
        ranked.append(((0 if targets or (workload.name, shape) in FIRST else 1 + index, order), case))
    first = [case for _, case in sorted(ranked, key=lambda pair: pair[0])]
    if "compile" not in wanted or run.device == "cpu" or run.quick:
        return first
    again = [case for case in first if "compile" not in case.peers and load("compile").concerns(WORKLOADS[case.workload])]
    return first + [replace(case, peers=tuple(wanted)) for case in again]


def predictions(found: list[Case], device: str = "") -> str:
    """A line of predicted times, for this device, or for all known GPUs where it is none of them."""
    gpus = [KNOWN[device]] if device in KNOWN else list(KNOWN.values())
    lines = {}
    for case in found:
        times = " or ".join(report.ms_text(WORKLOADS[case.workload].predicted_ms(case.shape, rates)) for rates in gpus)
        lines[case.workload, case.shape] = f"{case.workload} {shape_name(case.shape)} {times}"
    return f"predicted for an {' or '.join(rates.name for rates in gpus)}: " + ", ".join(lines.values())


def _command(run: Run, path: Path, progress: Path, *words: str) -> list[str]:
    loss_s, update_s = BUDGETS["tiny" if run.quick or run.device == "cpu" else "short" if run.short else ""]
    budget = ["--loss-budget", str(loss_s), "--update-budget", str(update_s)]
    return python("benchmarks.gpu.cases", str(path), "--progress", str(progress), "--device", run.device, *budget, *words)


def warm_cases(found: list[Case]) -> list[Case]:
    """The cases that compile each kernel once: with peers that compile, and that no earlier case of the same shape has."""
    kept: list[Case] = []
    done: set[tuple] = set()
    for case in found:
        workload = WORKLOADS[case.workload]
        rows, columns, _ = workload.product(case.shape) if workload.product else (0, 0, 0)
        large = workload.kind == "loss" and rows * columns > WARM_MATRIX
        alone = replace(case, peers=())
        new = [peer for peer in case.peers if peer in COMPILED and load(peer).concerns(workload) and (alone, peer) not in done]
        peers = tuple(peer for peer in new if not (peer == "compile" and large))
        if peers or (workload.product is not None and (alone, runner.OURS) not in done):
            kept.append(replace(case, peers=peers))
        done |= {(alone, name) for name in (runner.OURS, *peers)}
    return kept


def warm(run: Run) -> None:
    """Compiles every kernel once, in processes side by side. A process that fails costs only its own compilations."""
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
    """A list of cases, measured by one process; where the process dies, the next one goes on behind the case that killed it.

    ``lost``: the cases that took a process down.
    """

    def __init__(self, run: Run, name: str, found: list[Case], *words: str, number: int = 0):
        self.run, self.name, self.found, self.words = run, name, found, words
        self.path = write_cases(found, run.folder("cases") / f"{name.replace(' ', '_')}_{number}.json")
        self.progress = self.path.with_suffix(".jsonl")
        self.first, self.lost, self.process = 0, [], None
        self.start()

    def start(self) -> None:
        """Starts the process for the cases from ``first`` on."""
        self.progress.unlink(missing_ok=True)
        command = _command(self.run, self.path, self.progress, "--first", str(self.first), *self.words)
        self.seen, self.since = 0, time.monotonic()
        try:
            self.process, self.log = self.run.start(f"{self.path.stem} from {self.first}", command)
        except OSError as error:
            self.run.record(Step(f"{self.name} {self.found[self.first]}", f"did not start: {error}"))
            self.first += 1

    def overdue(self) -> str:
        """Why the process should be stopped, or ""."""
        lines = len(read_lines(self.progress))
        if lines > self.seen:
            self.seen, self.since = lines, time.monotonic()
        limit_s = START_S if not self.seen else SHORT_S if self.run.short else CASE_S
        return f"stopped after {limit_s:.0f} s" if time.monotonic() - self.since > limit_s else ""

    def poll(self) -> None:
        """Looks at the process once; where it has ended, records its cases and starts the next process."""
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
        """Records the cases of a process that ended, and the case that ended it; False where the process could not even start."""
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
    """Runs lanes side by side until all have ended or the time is over; returns the cases that took a process down."""
    try:
        while time.monotonic() < until and any(lane.process for lane in lanes):
            for lane in lanes:
                if lane.process:
                    lane.poll()
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
    wanted = (case.workload, list(case.shape), _dtype(case))
    return any((found["work"], c["shape"], c["dtype"]) == wanted for found in results(run) for c in found["cases"])


def bench(run: Run) -> None:
    """Measures the cases; one that took its process down is measured again, beside eager PyTorch only."""
    until = time.monotonic() + run.stage_s()
    if run.short:
        workloads = tuple(name for name in run.workloads if name in BENCH_WORKLOADS) or run.workloads
        run = replace(run, peers=run.peers or ("eager",), workloads=workloads)
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
    """Compares each workload, at its smallest shape, with float64; eager PyTorch runs beside it, for a first idea of times."""
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
    for workload in found:
        for case in workload["cases"]:
            ours = next(entry for entry in case["entries"] if entry["implementation"] == runner.OURS)
            errors = ", ".join(f"{name.removesuffix('_error')} {ours[name]:.1e}" for name in ours if name.endswith("_error"))
            said = ours["status"] if ours["status"] == OK else f"{ours['status']}: {ours['reason']}"
            time_is = report.ms_text(ours["ms"]) if "ms" in ours else ""
            rows.append((workload["work"], report.shape_text(case["shape"]), case["dtype"], said, errors, time_is))
            right += ours["status"] == OK
    head = ("workload", "shape", "dtype", "against float64", "error", "time, others on the GPU")
    return f"{right} of {wanted} workloads right\n\n{report.markdown(head, rows)}"


def global_failure(steps: list[Step], found: list[Case]) -> str:
    """Why the stages behind smoke would only repeat its failures, or "".

    That is so where most workloads failed, or all losses (Triton), or all updates (CUDA C++).
    """
    kinds = {str(case): WORKLOADS[case.workload].kind for case in found}
    kind_of = lambda step: next((kind for case, kind in kinds.items() if step.name.endswith(case)), "")  # noqa: E731
    for kind, named in (("", "workloads"), ("loss", "losses"), ("update", "updates")):
        tried = [step for step in steps if kind in ("", kind_of(step))]
        bad = [step for step in tried if step.bad]
        if bad and len(bad) > (GLOBAL * len(tried) if not kind else len(tried) - 1):
            return f"{len(bad)} of {len(tried)} {named} failed in smoke, the first: {bad[0].name}: {bad[0].state}"
    return "" if steps or not found else "smoke ran no workload"


def results(run: Run, folder: str = "results") -> list[dict]:
    """The result files of this run, machine by machine. A file that a stopped process left half written is passed over."""
    found = []
    for path in (each / f"{name}.json" for each in sorted((run.scratch / folder).glob("*/")) for name in WORKLOADS):
        with suppress(ValueError, FileNotFoundError):
            found.append(runner.read(path))
    return found


def comparison(found: dict) -> str:
    """A table of the predicted and measured times of a workload's cases, with the best peer."""
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
