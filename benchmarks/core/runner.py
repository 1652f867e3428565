"""One work at one shape: every implementation through the gate, then timed in turns, then its memory. The result is JSON.

An entry's ``status``: "ok"; "wrong" (gate), "other objective", "absent", "too large", "out of memory", "failed". Only "ok" has
a time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.core import machine, memory, rates, timing
from benchmarks.core.prepared import Prepared, prepare, release
from benchmarks.core.workloads import Target, Update, Work, shape_name
from benchmarks.peers import NAMES, implementation, load

SCHEMA = 1
OURS = "fastssl"
#: Our implementations; the others are peers.
OWN = (OURS, "update_momentum")


@dataclass(frozen=True)
class Options:
    """``budget_s`` seconds of turns for one case, shared equally; at least ``rounds`` turns each (3 for the very slow)."""

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
    """(entry, turn): the entry without a time, and the turn if it may be timed."""
    entry: dict = {"implementation": name}
    if name != OURS:
        status, reason = load(name).unfit(prepared.work, prepared.shape, prepared.device)
        if status:
            return entry | {"status": status, "reason": reason}, None
        entry["version"] = load(name).version()
    try:
        errors, wrong, turn = prepared.try_out(build(name, prepared.work), strict=name == OURS)
    except Exception as error:  # a peer's own code: its failure is its result
        entry |= _failure(error)
        turn = None
    if turn is None:
        release(prepared.device)
        return entry, None
    entry |= errors
    return (entry | {"status": "wrong", "reason": wrong}, None) if wrong else (entry | {"status": "ok"}, turn)


Limit = tuple[Callable | None, Callable[[float], float], str]


def _limit(prepared: Prepared) -> Limit:
    """(call to time in turns or None, ms of the call -> ms of the limit, what the limit is)."""
    work, shape, device = prepared.work, prepared.shape, prepared.device
    if work.product is None:
        return _memory_limit(work.case.bytes(shape, prepared.dtype.itemsize), device)
    flops = work.case.flops(shape)
    if device == "cuda":
        rate = timing.gpu_product_rate(prepared.dtype)
        return None, lambda _: 1e3 * flops / rate, f"{rate / 1e12:.0f} TFLOP/s, an 8192 cube matrix product in this run"
    call, factor = timing.product_call(work.product(shape), prepared.dtype)
    scale = factor * flops / work.sweep_flops(shape)
    return call, lambda ms: scale * ms, f"{flops / work.sweep_flops(shape):g}U in torch.mm of this shape, in this run"


def _memory_limit(moved: float, device: str) -> Limit:
    amount = f"{moved / 1e9:.3g} GB" if moved >= 1e9 else f"{moved / 1e6:.3g} MB"
    if device == "cuda":
        rate = timing.gpu_memory_rate()
        return None, lambda _: 1e3 * moved / rate, f"{amount} at {rate / 1e12:.2f} TB/s, a large copy in this run"
    call, factor = timing.memory_call(moved)
    return call, lambda ms: factor * ms, f"{amount} read and written in place in this run"


def _fill(entry: dict, time: timing.Timing, prepared: Prepared, limit_ms: float) -> None:
    entry |= {"ms": time.ms, "p20": time.p20, "p80": time.p80, "rounds": time.rounds, "share_of_limit": limit_ms / time.ms}
    case = prepared.work.case
    if prepared.work.product is None:
        entry["bytes_per_s"] = case.bytes(prepared.shape, prepared.dtype.itemsize) / (time.ms * 1e-3)
    else:
        entry["flop_per_s"] = case.flops(prepared.shape) / (time.ms * 1e-3)


def _launches(entries, turns) -> None:
    """Adds what the host does for one step: its time, and how much it starts on the GPU."""
    for name, turn in turns.items():
        entries[name]["host_ms"] = timing.host_ms(turn, torch.cuda.synchronize)
        count, reason = timing.gpu_launches(turn)
        entries[name] |= {"launches_reason": reason} if count is None else {"launches": count}


def _graph_times(entries, turns, prepared: Prepared, options: Options) -> None:
    """Adds ``graph_ms`` (replay of a CUDA graph of a turn) or ``graph_reason`` to the entries, in turns."""
    replays = {}
    for name, turn in turns.items():
        if prepared.moves_memory(turn):
            entries[name]["graph_reason"] = "puts its result into new memory, which a replay would not follow"
            continue
        replay, reason = timing.capture_graph(turn)
        if replay is None:
            entries[name]["graph_reason"] = reason
        else:
            replays[name] = replay
    try:
        for name, time in timing.take_turns(replays, options.device, options.budget_s / 3, options.rounds).items():
            entries[name]["graph_ms"] = time.ms
    except RuntimeError as error:  # an earlier failed capture can leave a broken stream; the plain times are safe already
        for name in replays:
            entries[name]["graph_reason"] = _failure(error)["reason"]


def _memories(entries, turns, prepared: Prepared, say) -> None:
    for name, turn in turns.items():
        if prepared.device == "cuda":
            peak, reason = memory.cuda_rise_mb(turn), ""
        else:
            say(f"  memory of {name}")
            peak, reason = memory.measure(prepared.work, prepared.shape, prepared.dtype, name)
        entries[name] |= {"peak_mb": peak} if reason == "" else {"peak_reason": reason}


def device_ms(entry: dict) -> tuple[float | None, str]:
    """(ms, how measured): the replay of a graph where there is one, which waits for no host; else a call."""
    return (entry["graph_ms"], "CUDA graph") if "graph_ms" in entry else (entry.get("ms"), "")


def judge(target: Target, entries: dict[str, dict], limit_ms: float | None) -> dict:
    """{"target", "got", "met"}; "got" is text, "met" None where it could not be decided. Times in ms or limits: ``device_ms``."""
    ours = entries.get(OURS, {})
    got: float | None = None
    how = ""
    against = {"times_faster": "ms", "not_slower": "ms", "times_less_memory": "peak_mb"}.get(target.kind)
    if against:
        peer = entries.get(target.peer, {})
        got = peer[against] / max(ours[against], 1e-9) if against in peer and against in ours else None
    elif target.kind == "ms" or (target.kind == "times_limit" and limit_ms):
        got, how = device_ms(ours)
        got = got / limit_ms if target.kind == "times_limit" and got is not None else got
    elif target.kind in ("peak_mb", "launches"):
        got = ours.get(target.kind)
    elif target.kind == "runs" and ours:
        got = float(ours["status"] == "ok")
    met = None if got is None else got >= target.value if against or target.kind == "runs" else got <= target.value
    shown = "not measured" if got is None else ("yes" if got else "no") if target.kind == "runs" else f"{got:.3g}"
    shown += f", {how}" if how else ""
    return {"target": str(target), "got": shown, "met": met}


def run_case(work: Work | Update, shape, options: Options, say=_say, build=implementation) -> dict:
    """Measures every implementation of ``work`` at ``shape``; see the module."""
    torch._dynamo.reset()
    stamp = machine.run_stamp()
    say(f"{work.name} {shape_name(shape)} {str(work.dtype(options.dtype))[6:]}: gate")
    prepared = prepare(work, shape, options)
    entries, turns = {}, {}
    for name in (OURS, *(peer for peer in options.peers if load(peer).concerns(work))):
        entries[name], turn = admit(prepared, name, build)
        if turn is not None:
            turns[name] = turn
    limit_call, to_limit_ms, limit_is = _limit(prepared)
    say(f"  turns of {', '.join(turns)}")
    timed = turns | ({"limit": limit_call} if limit_call else {})
    times = timing.take_turns(timed, options.device, options.budget_s, options.rounds)
    limit_ms = to_limit_ms(times["limit"].ms if limit_call else 0.0)
    for name in turns:
        _fill(entries[name], times[name], prepared, limit_ms)
    if options.memory:
        _memories(entries, turns, prepared, say)
    if options.device == "cuda" and work.kind == "update":
        _launches(entries, turns)
    if options.device == "cuda" and options.graphs:
        _graph_times(entries, turns, prepared, options)
    if OURS in turns:
        for entry in entries.values():
            if "ms" in entry:
                entry["times_ours"] = entry["ms"] / entries[OURS]["ms"]
    return _case_json(prepared, stamp, entries, limit_ms, limit_is)


def _case_json(prepared: Prepared, stamp, entries, limit_ms, limit_is) -> dict:
    work, shape = prepared.work, prepared.shape
    dtype = str(prepared.dtype)[6:]
    targets = work.gpu_targets if prepared.device == "cuda" else work.targets
    case = {
        "shape": list(shape),
        "rows": work.rows(shape),
        "dtype": dtype,
        **stamp,
        "flops": work.case.flops(shape),
        "bytes": work.case.bytes(shape, prepared.dtype.itemsize),
        "limit_ms": limit_ms,
        "limit_is": limit_is,
        "entries": list(entries.values()),
        "targets": [judge(t, entries, limit_ms) for t in targets if t.shape == tuple(shape) and t.dtype == dtype],
    }
    if prepared.device == "cuda":
        known = rates.of_device(torch.cuda.get_device_name())
        case |= {"predicted_ms": work.predicted_ms(shape, known), "predicted_for": known.name}
    return case


def result(work: Work | Update, device: str, cases: list[dict]) -> dict:
    """The content of one result file."""
    return {
        "schema": SCHEMA,
        "work": work.name,
        "kind": work.kind,
        "title": work.title,
        "axes": work.axes,
        "constants": work.constants,
        "machine": machine.describe(device),
        "cases": cases,
    }


def save(found: dict, folder: Path) -> Path:
    """Writes ``folder/<work>.json``; cases of other shapes or dtypes that the file already had stay, with their own dates.

    ValueError where the file is another machine's: its cases would be taken for this one's.
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
    found = json.loads(path.read_text())
    if found.get("schema") != SCHEMA:
        raise ValueError(f"bench: {path} has schema {found.get('schema')}, this code reads {SCHEMA}; measure it again")
    return found
