"""Measures one workload at one shape: first the accuracy check of each implementation, then times, then memory; JSON comes out.

The ``status`` of an entry is "ok", "wrong" (it failed the accuracy check), "other objective", "absent", "too large", "out of
memory" or "failed". Only an entry that is "ok" has a time.

Imports the other files of ``core`` except ``registry``, and ``benchmarks.peers``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.core import machine, memory, rates, timing
from benchmarks.core.prepared import Prepared, prepare, release
from benchmarks.core.workloads import IN_FLOAT32, Target, Update, Workload, shape_name
from benchmarks.peers import NAMES, implementation, load
from fastssl import peaks

SCHEMA = 1
OURS = "fastssl"
#: The implementations that are ours; all others are peers.
OWN = (OURS, IN_FLOAT32, "update_momentum")


@dataclass(frozen=True)
class Options:
    """How to measure. One case is timed for ``budget_s`` seconds, which its implementations share equally.

    Each implementation is timed at least ``rounds`` times, a very slow one at least 3 times.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    peers: tuple[str, ...] = NAMES
    rounds: int = 7
    budget_s: float = 20.0
    memory: bool = True
    graphs: bool = False
    seed: int = 0


def _say(text: str) -> None:
    print(text, flush=True)


def _failure(error: Exception) -> dict:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return {"status": "out of memory", "reason": "out of memory"}
    first = str(error).strip().splitlines() or [""]
    return {"status": "failed", "reason": f"{type(error).__name__}: {first[0][:160]}"}


def admit(prepared: Prepared, name: str, build=implementation) -> tuple[dict, Callable[[], object] | None]:
    """(entry, step): the entry as far as the accuracy check fills it, and the step to time, or None where it may not be timed."""
    entry: dict = {"implementation": name}
    if name not in (OURS, IN_FLOAT32):
        status, reason = load(name).unfit(prepared.workload, prepared.shape, prepared.device)
        if status:
            return entry | {"status": status, "reason": reason}, None
        entry["version"] = load(name).version()
    try:
        if name == IN_FLOAT32:
            errors, wrong, step = prepared.widened().try_out(build(OURS, prepared.workload), strict=False)
        else:
            errors, wrong, step = prepared.try_out(build(name, prepared.workload), strict=name == OURS)
    except Exception as error:  # a peer's own code: its failure is its result
        entry |= _failure(error)
        step = None
    if step is None:
        release(prepared.device)
        return entry, None
    entry |= errors
    return (entry | {"status": "wrong", "reason": wrong}, None) if wrong else (entry | {"status": "ok"}, step)


Limit = tuple[Callable | None, Callable[[float], float], str]


def _limit(prepared: Prepared) -> Limit:
    """(call to time beside the implementations or None, ms of the call -> ms of the limit, a text that says what the limit is)."""
    workload, shape, device = prepared.workload, prepared.shape, prepared.device
    if workload.product is None:
        return _memory_limit(workload.case.bytes(shape, prepared.dtype.itemsize), device)
    flops = workload.case.flops(shape)
    if device == "cuda":
        rate = timing.gpu_product_rate(prepared.dtype)
        return None, lambda _: 1e3 * flops / rate, f"{rate / 1e12:.0f} TFLOP/s, an 8192 cube matrix product in this run"
    dtype = timing.product_dtype(workload.product(shape), prepared.dtype)
    call, scale = timing.product_call(workload.product(shape), dtype)
    scale *= flops / workload.sweep_flops(shape)
    wide = "" if dtype == prepared.dtype else " in float32, which is faster here"
    return call, lambda ms: scale * ms, f"{flops / workload.sweep_flops(shape):g}U in torch.mm of this shape{wide}, in this run"


def _memory_limit(moved: float, device: str) -> Limit:
    amount = f"{moved / 1e9:.3g} GB" if moved >= 1e9 else f"{moved / 1e6:.3g} MB"
    if device == "cuda":
        rate = timing.gpu_memory_rate()
        return None, lambda _: 1e3 * moved / rate, f"{amount} at {rate / 1e12:.2f} TB/s, a large copy in this run"
    call, scale = timing.memory_call(moved)
    return call, lambda ms: scale * ms, f"{amount} read and written in place in this run"


def _peak(prepared: Prepared) -> dict | None:
    """What the CPU can do at best in products of this dtype, measured now; None where no product binds or it is not known."""
    if prepared.device != "cpu" or prepared.workload.product is None:
        return None
    found = peaks.peak_of(prepared.dtype)
    return found and {"unit": found.name, "flop_per_s": found.registers, "tile_flop_per_s": found.tile}


def _fill(entry: dict, time: timing.Timing, prepared: Prepared, limit_ms: float, peak: dict | None) -> None:
    entry |= {"ms": time.ms, "p20": time.p20, "p80": time.p80, "rounds": time.rounds, "share_of_limit": limit_ms / time.ms}
    case = prepared.workload.case
    if prepared.workload.product is None:
        entry["bytes_per_s"] = case.bytes(prepared.shape, prepared.dtype.itemsize) / (time.ms * 1e-3)
    else:
        entry["flop_per_s"] = case.flops(prepared.shape) / (time.ms * 1e-3)
    if peak:
        entry["share_of_peak"] = entry["flop_per_s"] / peak["flop_per_s"]


def _launches(entries, steps) -> None:
    """Adds what the host does for one step: its time, and how many kernels, copies and fills it starts on the GPU."""
    for name, step in steps.items():
        entries[name]["host_ms"] = timing.host_ms(step, torch.cuda.synchronize)
        count, reason = timing.gpu_launches(step)
        entries[name] |= {"launches_reason": reason} if count is None else {"launches": count}


def _graph_times(entries, steps, prepared: Prepared, options: Options) -> None:
    """Adds ``graph_ms``, the time of the replay of a step as a CUDA graph, or ``graph_reason``, why there is none."""
    replays = {}
    for name, step in steps.items():
        if prepared.moves_memory(step):
            entries[name]["graph_reason"] = "puts its result into new memory, which a replay would not follow"
            continue
        replay, reason = timing.capture_graph(step)
        if replay is None:
            entries[name]["graph_reason"] = reason
        else:
            replays[name] = replay
    try:
        for name, time in timing.time_interleaved(replays, options.device, options.budget_s / 3, options.rounds).items():
            entries[name]["graph_ms"] = time.ms
    except RuntimeError as error:  # an earlier failed capture can leave a broken stream; the plain times are safe already
        for name in replays:
            entries[name]["graph_reason"] = _failure(error)["reason"]


def _memories(entries, steps, prepared: Prepared, say) -> None:
    for name, step in steps.items():
        if name == IN_FLOAT32:
            continue
        if prepared.device == "cuda":
            peak, reason = memory.cuda_rise_mb(step), ""
        else:
            say(f"  memory of {name}")
            peak, reason = memory.measure(prepared.workload, prepared.shape, prepared.dtype, name)
        entries[name] |= {"peak_mb": peak} if reason == "" else {"peak_reason": reason}


def device_ms(entry: dict) -> tuple[float | None, str]:
    """(ms, how it was measured): the replay of a graph where there is one, since a replay waits for no host; else a call."""
    return (entry["graph_ms"], "CUDA graph") if "graph_ms" in entry else (entry.get("ms"), "")


def judge(target: Target, entries: dict[str, dict], limit_ms: float | None) -> dict:
    """{"target", "got", "met"} of one target. "got" is a text; "met" is None where nothing was measured that decides it.

    A target in ms, or in times the limit, is compared with ``device_ms``; one in times a peer with the ratio of a run.
    """
    ours = entries.get(OURS, {})
    got: float | None = None
    how = ""
    peer = entries.get(target.peer, {})
    against = target.kind in ("times_faster", "not_slower", "times_less_memory")
    if target.kind == "times_less_memory":
        got = peer["peak_mb"] / max(ours["peak_mb"], 1e-9) if "peak_mb" in peer and "peak_mb" in ours else None
    elif against:
        got = peer.get("times_ours")
    elif target.kind == "ms" or (target.kind == "times_limit" and limit_ms):
        got, how = device_ms(ours)
        if target.kind == "times_limit" and got is not None:
            got = got / limit_ms if how else 1 / ours["share_of_limit"]
    elif target.kind in ("peak_mb", "launches"):
        got = ours.get(target.kind)
    elif target.kind == "runs" and ours:
        got = float(ours["status"] == "ok")
    met = None if got is None else got >= target.value if against or target.kind == "runs" else got <= target.value
    shown = "not measured" if got is None else ("yes" if got else "no") if target.kind == "runs" else f"{got:.3g}"
    shown += f", {how}" if how else ""
    return {"target": str(target), "got": shown, "met": met}


def _compared(workload: Workload | Update, options: Options) -> tuple[str, ...]:
    """The implementations that a comparison of the workload mentions."""
    sixteen = workload.kind == "loss" and options.device == "cpu" and options.dtype.itemsize == 2
    return (OURS, *[IN_FLOAT32] * sixteen, *(peer for peer in options.peers if load(peer).concerns(workload)))


def run_case(workload: Workload | Update, shape, options: Options, say=_say, build=implementation) -> dict:
    """Measures every implementation of ``workload`` at ``shape``: accuracy, times, memory."""
    torch._dynamo.reset()
    stamp = machine.run_stamp()
    say(f"{workload.name} {shape_name(shape)} {str(workload.dtype(options.dtype))[6:]}: accuracy check")
    prepared = prepare(workload, shape, options)
    entries, steps = {}, {}
    for name in _compared(workload, options):
        entries[name], step = admit(prepared, name, build)
        if step is not None:
            steps[name] = step
    limit_call, to_limit_ms, limit_is = _limit(prepared)
    say(f"  times of {', '.join(steps)}")
    timed = steps | ({"limit": limit_call} if limit_call else {})
    times = timing.time_interleaved(timed, options.device, options.budget_s, options.rounds)
    limit_ms, peak = to_limit_ms(times["limit"].ms if limit_call else 0.0), _peak(prepared)
    for name in steps:
        _fill(entries[name], times[name], prepared, limit_ms, peak)
    if options.memory:
        _memories(entries, steps, prepared, say)
    if options.device == "cuda" and workload.kind == "update":
        _launches(entries, steps)
    if options.device == "cuda" and options.graphs:
        _graph_times(entries, steps, prepared, options)
    if OURS in steps:
        for entry in entries.values():
            if "ms" in entry:
                entry["times_ours"] = entry["ms"] / entries[OURS]["ms"]
    limit = {"limit_ms": limit_ms, "limit_is": limit_is} | ({"peak": peak} if peak else {})
    return _case_json(prepared, stamp, entries, limit)


def targets(workload: Workload | Update, case: dict) -> list[dict]:
    """The verdicts on what the workload should reach at the case's shape, dtype and device."""
    entries = {entry["implementation"]: entry for entry in case["entries"]}
    wanted = workload.gpu_targets if case["device"] == "cuda" else workload.targets
    here = [t for t in wanted if t.shape == tuple(case["shape"]) and t.dtype == case["dtype"]]
    return [judge(target, entries, case["limit_ms"]) for target in here]


def _case_json(prepared: Prepared, stamp, entries, limit: dict) -> dict:
    workload, shape = prepared.workload, prepared.shape
    case = {
        "shape": list(shape),
        "rows": workload.rows(shape),
        "device": prepared.device,
        "dtype": str(prepared.dtype)[6:],
        **stamp,
        "flops": workload.case.flops(shape),
        "bytes": workload.case.bytes(shape, prepared.dtype.itemsize),
        **limit,
        "entries": list(entries.values()),
    }
    case["targets"] = targets(workload, case)
    if prepared.device == "cuda":
        known = rates.of_device(torch.cuda.get_device_name())
        case |= {"predicted_ms": workload.predicted_ms(shape, known), "predicted_for": known.name}
    return case


def result(workload: Workload | Update, device: str, cases: list[dict]) -> dict:
    """The content of one result file."""
    return {
        "schema": SCHEMA,
        "work": workload.name,
        "kind": workload.kind,
        "title": workload.title,
        "axes": workload.axes,
        "constants": workload.constants,
        "machine": machine.describe(device),
        "cases": cases,
    }


def save(found: dict, folder: Path) -> Path:
    """Writes a file in ``folder`` that is named after the workload.

    Cases of other shapes or dtypes that the file already holds stay, with their own dates.

    Raises ValueError where the file was measured on another machine: its cases would be taken for those of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['work']}.json"
    key = lambda case: (case["dtype"], case["rows"], *case["shape"])  # noqa: E731
    before = read(path) if path.exists() else {"cases": []}
    slugs = [file["machine"]["slug"] for file in (before, found) if "machine" in file]
    if len(set(slugs)) > 1:
        raise ValueError(f"bench: {path} was measured on {slugs[0]}, this is {slugs[1]}; give each machine a folder of its own")
    cases = {key(case): case for case in before["cases"]}
    cases |= {key(case): case for case in found["cases"]}
    part = path.with_suffix(".part")  # a process that is stopped here leaves the old file whole
    part.write_text(json.dumps(found | {"cases": [cases[k] for k in sorted(cases)]}, indent=1) + "\n")
    return part.replace(path)


def read(path: Path) -> dict:
    """The content of a result file. Raises ValueError where another version of this code wrote it."""
    found = json.loads(path.read_text())
    if found.get("schema") != SCHEMA:
        raise ValueError(f"bench: {path} has schema {found.get('schema')}, this code reads {SCHEMA}; measure it again")
    return found
