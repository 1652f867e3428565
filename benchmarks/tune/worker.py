"""The tuner's processes: some compile, without a context on the GPU; one at a time launches, and may die of a candidate.

    python -m benchmarks.tune.worker PLAN ROWS      times the items of PLAN (json), a line of ROWS for each begun and each finished

An item is (case, candidate number). Items that ROWS already names are left out, so a process started again goes on behind the
culprit. Exit 3: the device context is lost.
"""

import functools
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.core import timing
from benchmarks.tune import candidates as tune_candidates
from benchmarks.tune.cases import CASES, TINY, Call, Case, Config, Outputs, forced, tolerance, usual_config, without_contents
from fastssl.testing.compare import relative_error

LOST = 3
TURN_MS = 2.0
ROUNDS = {"cuda": 9, "cpu": 2}


def cases(device: str) -> tuple[Case, ...]:
    return CASES if device == "cuda" else TINY


def compile_cases(task: tuple[int, int, tuple[int, ...], Config, str]) -> tuple[tuple[int, ...], Config, str]:
    """Launches one candidate of some cases offline, so that Triton's cache holds it; task: architecture, SMs, cases, candidate,
    device. (cases, candidate, why it is not to be launched, or "")."""
    from fastssl.testing.compile import offline, programs_per_sm

    arch, num_sms, indices, config, device = task
    try:
        with offline(arch, num_sms) as found, without_contents():
            for case in (cases(device)[index] for index in indices):
                call = case.build(*case.shape, torch.bfloat16, "cpu")
                found.clear()
                with forced(case.kernel, config):
                    call()
                registers, spilled, shared = tune_candidates.needs(found, case.kernel)
                if config and (spilled or programs_per_sm(registers, shared, config[2], arch) < 1):
                    return indices, config, f"{case.name}: {registers} registers, {spilled} B spilled, {shared} B shared"
    except Exception as error:
        return indices, config, f"{type(error).__name__}: {str(error)[:160]}"
    return indices, config, ""


@dataclass
class Usual:
    """One case, prepared: the call, the result of the usual configuration, and a timed form of it."""

    call: Call
    outputs: Outputs
    timed: Callable[[], object]


@dataclass
class Times:
    """Median ms of a candidate and of the usual one, and usual over candidate, round by round."""

    ms: float
    usual_ms: float
    gain: float
    spread: float

    def row(self) -> dict:
        return {"ms": self.ms, "usual_ms": self.usual_ms, "gain": self.gain, "spread": self.spread}


def in_turns(mine: Callable[[], object], usual: Callable[[], object], device: str) -> Times:
    """Usual and candidate one after the other, the first of a round in turn; a turn lasts ``TURN_MS`` at least on a GPU."""
    estimate = max(timing.once_ms(usual, device), 1e-4)
    repeats = max(1, math.ceil(TURN_MS / estimate)) if device == "cuda" else 1
    mine_ms, usual_ms = [], []
    gc.disable()
    try:
        for turn in range(ROUNDS[device]):
            order = ((mine, mine_ms), (usual, usual_ms))
            for call, samples in order if turn % 2 else reversed(order):
                samples.append(timing.once_ms(call, device, repeats))
    finally:
        gc.enable()
    gains = [b / a for a, b in zip(mine_ms, usual_ms, strict=True)]
    middle = statistics.quantiles(gains, n=4)
    return Times(statistics.median(mine_ms), statistics.median(usual_ms), statistics.median(gains), middle[2] - middle[0])


def replayed(call: Call, device: str) -> Callable[[], object]:
    """The call as a CUDA graph, without the host; raises where it cannot be captured."""
    if device != "cuda":
        return call
    replay, reason = timing.capture_graph(call)
    if replay is None:
        raise RuntimeError(f"no CUDA graph: {reason}")
    return replay


def prepare(case: Case, device: str, arch: int) -> Usual:
    call = case.build(*case.shape, torch.bfloat16 if device == "cuda" else torch.float16, device)
    with forced(case.kernel, usual_config(case.key, arch)):
        outputs = {name: t.clone() for name, t in call().items()}
        return Usual(call, outputs, replayed(call, device))


def wrong(outputs: Outputs, again: Outputs, usual: Outputs, dtype: torch.dtype) -> str:
    """Why a candidate's result is not to be trusted, or ""."""
    for name, t in outputs.items():
        if not torch.equal(t, again[name]):
            return f"{name} moves between two runs"
        error, most = relative_error(t, usual[name]), tolerance(name, dtype)
        if not error <= most:
            return f"{name} is {error:.1e} from the usual configuration's, over {most:.1e}"
    return ""


def measure(case: Case, usual: Usual, config: Config, device: str) -> dict:
    """{"ms", "usual_ms", "gain", "spread"} or {"failed" | "wrong": reason}."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    try:
        with forced(case.kernel, config):
            first = {name: t.clone() for name, t in usual.call().items()}
            second = usual.call()
            if reason := wrong(first, second, usual.outputs, dtype):
                return {"wrong": reason}
            mine = replayed(usual.call, device)
        return in_turns(mine, usual.timed, device).row()
    except Exception as error:  # a tile that does not compile or launch is a result
        return {"failed": f"{type(error).__name__}: {str(error)[:160]}"}


def lost(device: str) -> bool:
    """Whether the device context no longer answers."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.ones(1, device="cuda").item()
    except Exception:
        return True
    return False


def read_rows(file: Path) -> tuple[set[tuple[int, int]], dict[tuple[int, int], dict]]:
    """(items begun, item -> finished row)."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    begun = {tuple(line["item"]) for line in lines}
    return begun, {tuple(line["item"]): line["row"] for line in lines if "row" in line}


def _say(file: Path, **line) -> None:
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


def undone(plan: dict, begun: set[tuple[int, int]], timed: set[int]) -> Iterator[tuple[int, int, Config]]:
    """Items not begun, but for cases whose usual configuration, their first item, has no time: ``timed`` grows on the way."""
    for index, configs in plan["items"]:
        for number, config in enumerate(configs):
            if number and index not in timed:
                break
            if (index, number) not in begun:
                yield index, number, tuple(config)


def compiled_again() -> Callable[[], int]:
    """A count of the kernels that Triton's cache did not hold."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return lambda: 0
    from triton import knobs

    missed = []
    knobs.compilation.listener = lambda *, cache_hit, **_: None if cache_hit else missed.append(1)
    return lambda: len(missed)


def main(plan_file: str, rows_file: str) -> int:
    plan, file = json.loads(Path(plan_file).read_text()), Path(rows_file)
    device, arch = plan["device"], plan["arch"]
    missed = compiled_again()
    prepared = functools.lru_cache(maxsize=1)(lambda index: prepare(cases(device)[index], device, arch))
    begun, finished = read_rows(file)
    timed = {index for (index, number), row in finished.items() if number == 0 and "ms" in row}
    for index, number, config in undone(plan, begun, timed):
        if time.time() > plan["deadline"]:
            break
        _say(file, item=(index, number))
        before, begin = missed(), time.monotonic()
        try:
            row = measure(cases(device)[index], prepared(index), config, device)
        except Exception as error:  # the usual configuration itself
            row = {"failed": f"the usual one: {type(error).__name__}: {str(error)[:160]}"}
        row |= {"compiled": missed() - before, "seconds": round(time.monotonic() - begin, 3)}
        _say(file, item=(index, number), row=row)
        timed |= {index} if number == 0 and "ms" in row else set()
        if lost(device):
            return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
