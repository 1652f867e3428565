"""One work at one shape: every implementation through the gate, then timed in turns, then its memory. The result is JSON.

An entry's ``status``: "ok"; "wrong" (gate), "other objective", "absent", "too large", "out of memory", "failed". Only "ok" has
a time.
"""

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import gate, machine, memory, timing
from benchmarks.peers import NAMES, implementation, load
from benchmarks.registry import Target, Work

SCHEMA = 1
OURS = "fastssl"
#: FLOP/s of the bfloat16 matrix product of an 8192 cube on an H200; predictions for GPUs are made with it.
H200_FLOP_PER_S = 790e12


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


@dataclass(frozen=True)
class Prepared:
    """One work at one shape, ready for the gate; ``eager`` holds the errors of eager PyTorch in the same dtype."""

    work: Work
    shape: tuple[int, ...]
    device: str
    inputs: dict[str, torch.Tensor]
    truth: gate.Truth
    eager: gate.Errors


def prepare(work: Work, shape, options: Options) -> Prepared:
    given = work.case.inputs(shape, dtype=options.dtype, device=options.device, seed=options.seed)
    inputs = gate.leaves(given, constant=work.constant_inputs)
    truth = gate.truth_of(work, shape, inputs)
    return Prepared(work, shape, options.device, inputs, truth, _eager_errors(work, shape, inputs, truth, options.device))


def _say(text: str) -> None:
    print(text, flush=True)


def _failure(error: Exception) -> dict:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return {"status": "out of memory", "reason": "out of memory"}
    first = str(error).strip().splitlines() or [""]
    return {"status": "failed", "reason": f"{type(error).__name__}: {first[0][:160]}"}


def _release(device: str) -> None:
    """Hands cached device memory back, after an implementation did not fit."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _eager_errors(work: Work, shape, inputs, truth, device: str) -> gate.Errors:
    """Errors of eager PyTorch in the case's dtype, the yardstick of the strict rule; zero where eager does not fit."""
    if load("eager").unfit(work, shape, device)[0]:
        return gate.Errors(0.0, 0.0)
    try:
        return gate.errors(partial(work.case.eager, **work.constants), inputs, truth)
    except torch.OutOfMemoryError:
        pass
    _release(device)
    return gate.Errors(0.0, 0.0)


def admit(prepared: Prepared, name: str, build=implementation) -> tuple[dict, Callable | None]:
    """(entry, call): the entry without a time, and the call if it may be timed."""
    entry: dict = {"implementation": name}
    if name != OURS:
        status, reason = load(name).unfit(prepared.work, prepared.shape, prepared.device)
        if status:
            return entry | {"status": status, "reason": reason}, None
        entry["version"] = load(name).version()
    try:
        call = build(name, prepared.work)
        found = gate.errors(call, prepared.inputs, prepared.truth)
    except Exception as error:  # a peer's own code: its failure is its result
        entry |= _failure(error)
        call = None
    if call is None:
        _release(prepared.device)
        return entry, None
    entry |= {"loss_error": found.loss, "grad_error": found.grad}
    dtype = next(iter(prepared.inputs.values())).dtype
    if wrong := gate.verdict(found, dtype, prepared.eager if name == OURS else None):
        return entry | {"status": "wrong", "reason": wrong}, None
    return entry | {"status": "ok"}, call


def _limit(work: Work, shape, options: Options) -> tuple[Callable | None, Callable[[float], float], str]:
    """(call to time in turns or None, ms of the call -> ms of the limit, what the limit is)."""
    flops = work.case.flops(shape)
    if options.device == "cuda":
        rate = timing.gpu_product_rate(options.dtype)
        return None, lambda _: 1e3 * flops / rate, f"{rate / 1e12:.0f} TFLOP/s, an 8192 cube matrix product in this run"
    call, factor = timing.product_call(work.product(shape), options.dtype)
    scale = factor * flops / work.sweep_flops(shape)
    return call, lambda ms: scale * ms, f"{flops / work.sweep_flops(shape):g}U in torch.mm of this shape, in this run"


def _times(calls: dict[str, Callable], inputs, options: Options, product: Callable | None) -> dict[str, timing.Timing]:
    turns: dict[str, Callable] = {name: partial(gate.step, call, inputs) for name, call in calls.items()}
    if product is not None:
        turns["limit"] = product
    return timing.take_turns(turns, options.device, options.budget_s, options.rounds)


def _fill(entry: dict, time: timing.Timing, flops: float, limit_ms: float) -> None:
    entry |= {"ms": time.ms, "p20": time.p20, "p80": time.p80, "rounds": time.rounds}
    entry |= {"flop_per_s": flops / (time.ms * 1e-3), "share_of_limit": limit_ms / time.ms}


def _graph_times(entries, calls, inputs, options: Options) -> None:
    """Adds ``graph_ms`` (replay of a CUDA graph of forward and backward) or ``graph_reason`` to the entries, in turns."""
    replays = {}
    for name, call in calls.items():
        replay, reason = timing.capture_graph(partial(gate.step, call, inputs))
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


def _memories(work: Work, shape, entries, calls, inputs, options: Options, say) -> None:
    for name, call in calls.items():
        if options.device == "cuda":
            for tensor in inputs.values():
                tensor.grad = None
            peak, reason = memory.cuda_rise_mb(partial(gate.step, call, inputs)), ""
        else:
            say(f"  memory of {name}")
            peak, reason = memory.measure(work, shape, options.dtype, name)
        entries[name] |= {"peak_mb": peak} if reason == "" else {"peak_reason": reason}


def judge(target: Target, entries: dict[str, dict], limit_ms: float | None) -> dict:
    """{"target", "got", "met"}; "got" is text, "met" None where it could not be decided."""
    ours = entries.get(OURS, {})
    got: float | None = None
    if target.kind == "times_faster":
        peer = entries.get(target.peer, {})
        got = peer["ms"] / ours["ms"] if "ms" in peer and "ms" in ours else None
    elif target.kind == "times_limit" and limit_ms and "ms" in ours:
        got = ours["ms"] / limit_ms
    elif target.kind in ("ms", "peak_mb"):
        got = ours.get(target.kind)
    elif target.kind == "runs" and ours:
        got = float(ours["status"] == "ok")
    met = None if got is None else got >= target.value if target.kind in ("times_faster", "runs") else got <= target.value
    shown = "not measured" if got is None else ("yes" if got else "no") if target.kind == "runs" else f"{got:.3g}"
    return {"target": str(target), "got": shown, "met": met}


def run_case(work: Work, shape, options: Options, say=_say, build=implementation) -> dict:
    """Measures every implementation of ``work`` at ``shape``; see the module."""
    torch._dynamo.reset()
    stamp = machine.run_stamp()
    say(f"{work.name} {'x'.join(map(str, shape))} {str(options.dtype)[6:]}: gate")
    prepared = prepare(work, shape, options)
    inputs = prepared.inputs
    entries, calls = {}, {}
    for name in (OURS, *options.peers):
        entries[name], call = admit(prepared, name, build)
        if call is not None:
            calls[name] = call
    product, to_limit_ms, limit_is = _limit(work, shape, options)
    say(f"  turns of {', '.join(calls)}")
    times = _times(calls, inputs, options, product)
    limit_ms = to_limit_ms(times["limit"].ms if product is not None else 0.0)
    flops = work.case.flops(shape)
    for name in calls:
        _fill(entries[name], times[name], flops, limit_ms)
    if options.memory:
        _memories(work, shape, entries, calls, inputs, options, say)
    if options.device == "cuda" and options.graphs:
        _graph_times(entries, calls, inputs, options)
    if OURS in calls:
        for entry in entries.values():
            if "ms" in entry:
                entry["times_ours"] = entry["ms"] / entries[OURS]["ms"]
    return _case_json(work, shape, options, stamp, entries, limit_ms, limit_is)


def _case_json(work: Work, shape, options: Options, stamp, entries, limit_ms, limit_is) -> dict:
    dtype = str(options.dtype)[6:]
    targets = work.gpu_targets if options.device == "cuda" else work.targets
    case = {
        "shape": list(shape),
        "rows": work.rows(shape),
        "dtype": dtype,
        **stamp,
        "flops": work.case.flops(shape),
        "bytes": work.case.bytes(shape, options.dtype.itemsize),
        "limit_ms": limit_ms,
        "limit_is": limit_is,
        "entries": list(entries.values()),
        "targets": [judge(t, entries, limit_ms) for t in targets if t.shape == tuple(shape) and t.dtype == dtype],
    }
    if options.device == "cuda":
        case["predicted_ms"] = work.predicted_ms(shape, H200_FLOP_PER_S)
    return case


def result(work: Work, device: str, cases: list[dict]) -> dict:
    """The content of one result file."""
    return {
        "schema": SCHEMA,
        "work": work.name,
        "title": work.title,
        "axes": work.axes,
        "constants": work.constants,
        "machine": machine.describe(device),
        "cases": cases,
    }


def save(found: dict, folder: Path) -> Path:
    """Writes ``folder/<work>.json``; cases of other shapes or dtypes that the file already had stay, with their own dates."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['work']}.json"
    key = lambda case: (case["dtype"], case["rows"], *case["shape"])  # noqa: E731
    cases = {key(case): case for case in read(path)["cases"]} if path.exists() else {}
    cases |= {key(case): case for case in found["cases"]}
    path.write_text(json.dumps(found | {"cases": [cases[k] for k in sorted(cases)]}, indent=1) + "\n")
    return path


def read(path: Path) -> dict:
    found = json.loads(path.read_text())
    if found.get("schema") != SCHEMA:
        raise ValueError(f"bench: {path} has schema {found.get('schema')}, this code reads {SCHEMA}; measure it again")
    return found
