"""Stages of a GPU run that ask how fast: which cases, in which order, and the processes that measure them.

Compilation is kept away from timing: ``warm`` first runs every kernel once, untimed, in many processes side by side, so that Triton
and inductor find their results on disk; then one process measures one case after another, alone on the machine. Timing while others
compile would count their kernels and their use of the cores: small steps wait for the host. A case that takes its process down,
or hangs, is named and tried again at the end with the eager peer only.
"""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import plots, report, runner
from benchmarks.gpu_cases import CONTEXT_LOST, Case, write_cases
from benchmarks.gpu_run import NO_TIME, OK, Run, Step, python, read_lines, stop
from benchmarks.peers import NAMES, load
from benchmarks.registry import WORKS, shape_name

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
#: Seconds for one case, and for one process to reach its first case.
CASE_S, START_S = 90.0, 60.0
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


def predictions(found: list[Case]) -> str:
    """Predicted times on an H200, a line for each shape."""
    lines = {}
    for case in found:
        work = WORKS[case.work]
        lines[case.work, case.shape] = f"{case.work} {shape_name(case.shape)} {report.ms_text(work.predicted_ms(case.shape))}"
    return "predicted for an H200: " + ", ".join(lines.values())


def _command(run: Run, path: Path, progress: Path, *words: str) -> list[str]:
    budget = ["--loss-budget", "0.5", "--update-budget", "0.2"] if run.quick or run.device == "cpu" else []
    return python("benchmarks.gpu_cases", str(path), "--progress", str(progress), "--device", run.device, *budget, *words)


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
    limit_s = run.share_s("warm")
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
    for k, step in enumerate(run.together(jobs, limit_s, many, WARM_ENV)):
        ended = [line for line in read_lines(progress[step.name]) if line["state"] != "begin"]
        step.note = f"{len(ended)} of {len(found[k::many])} cases"
        if step.state.startswith("stopped"):
            step.state = f"skipped: {step.state}; the rest compiles when it is timed"


def _watch(process, progress: Path, until: float) -> str:
    """Waits for the process; stops it where a case takes too long. "", or why it was stopped."""
    seen, since = 0, time.monotonic()
    while process.poll() is None:
        now, lines = time.monotonic(), len(read_lines(progress))
        if lines > seen:
            seen, since = lines, now
        limit_s = CASE_S if seen else START_S
        reason = NO_TIME if now > until else f"stopped after {limit_s:.0f} s" if now - since > limit_s else ""
        if reason:
            stop(process)
            return reason
        time.sleep(_POLL_S)
    return ""


def _one_process(run: Run, name: str, path: Path, first: int, until: float) -> tuple[list[dict], str, Path]:
    """(the cases that ended, why the process did not end well or "", its log), from case ``first`` on."""
    progress = path.with_suffix(".jsonl")
    progress.unlink(missing_ok=True)
    words = ("--first", str(first), "--out", str(run.results))
    process, log = run.start(f"{name} from {first}", _command(run, path, progress, *words))
    try:
        reason = _watch(process, progress, until)
    finally:
        run.end(process)
    ended = [line for line in read_lines(progress) if line["state"] != "begin"]
    return ended, reason or ("" if process.returncode == 0 else f"exit {process.returncode}"), log


def serve(run: Run, found: list[Case], name: str, until: float) -> list[Case]:
    """Measures the cases in one process as long as it lives, in a next one from there on; returns those that took one down."""
    path, first, lost = write_cases(found, run.folder("cases") / f"{name}.json"), 0, []
    while first < len(found) and time.monotonic() < until:
        ended, why, log = _one_process(run, name, path, first, until)
        for line in ended:
            run.record(Step(f"{name} {found[line['case']]}", line["state"], line["seconds"], log=log))
        first += len(ended)
        if why == f"exit {CONTEXT_LOST}":
            lost.append(found[first - 1])
        elif why and first < len(found):
            run.record(Step(f"{name} {found[first]}", why, log=log))
            lost += [found[first]] if why != NO_TIME else []
            first += 1
        run.say(log.read_text(errors="replace")[-800:])
        if not why or not read_lines(path.with_suffix(".jsonl")):  # done, or it cannot even start: the next would not either
            break
    run.steps += [Step(f"{name} {case}", NO_TIME if time.monotonic() >= until else "not run") for case in found[first:]]
    return lost


def _has_result(run: Run, case: Case) -> bool:
    wanted = (case.work, list(case.shape), _dtype(case))
    return any((found["work"], c["shape"], c["dtype"]) == wanted for found in results(run) for c in found["cases"])


def _serve_all(run: Run, stage: str, found: list[Case]) -> None:
    until = time.monotonic() + run.share_s(stage)
    if run.device == "cuda":
        run.say(predictions(found))
    lost = [replace(case, peers=("eager",)) for case in serve(run, found, stage, until)]
    if lost := [case for case in lost if not _has_result(run, case)]:
        serve(run, lost, f"{stage} eager only", until)
    run.report(stage, "\n\n".join(map(comparison, results(run))))


def bench(run: Run) -> None:
    _serve_all(run, "bench", cases(run))
    with suppress(ModuleNotFoundError):  # the figures are worth having without pictures
        for found in results(run):
            plots.draw(found, run.results)


def smoke(run: Run) -> None:
    """Each work at its smallest shape against eager only: that everything runs and is right, with a first idea of its time."""
    small = replace(run, quick=True, peers=("eager",))
    _serve_all(small, "smoke", cases(small))


def results(run: Run) -> list[dict]:
    """What was measured; a file that a stopped process left half written is passed over."""
    found = []
    for path in (run.results / f"{name}.json" for name in WORKS):
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
        predicted = case.get("predicted_ms")
        rows.append(
            (
                report.shape_text(case["shape"]),
                case["dtype"],
                "" if predicted is None else report.ms_text(predicted),
                report.ms_text(ours["ms"]) if ours["status"] == OK else f"{ours['status']}: {ours['reason']}",
                report.ms_text(ours["graph_ms"]) if "graph_ms" in ours else "",
                "" if predicted is None or "ms" not in ours else f"{ours['ms'] / predicted:.2f}",
                report.ms_text(case["limit_ms"]),
                "" if best is None else f"{best['implementation']} {report.ms_text(best['ms'])}",
            )
        )
    head = (found["axes"], "dtype", "predicted", "fastssl", "CUDA graph", "over predicted", "limit", "best peer")
    return f"## {found['title']}\n\n{report.markdown(head, rows)}"
