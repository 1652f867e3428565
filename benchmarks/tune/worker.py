"""The processes of the tuner: some compile, without a context on the GPU; one launches, and a candidate may kill it.

    python -m benchmarks.tune.worker PLAN ROWS      times the items of PLAN (JSON)

An item is (case, candidate number). ROWS gets a line for each item that begins and one for each that is finished. Items that ROWS
names already are left out, so a process that is started again goes on behind the candidate that killed the last one. The exit
status is 3 where the device context is lost. Imports ``cases``, ``candidates`` and ``core.timing``.
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
SAMPLE_MS = 2.0
ROUNDS = {"cuda": 9, "cpu": 2}


def cases(device: str) -> tuple[Case, ...]:
    return CASES if device == "cuda" else TINY


def compile_cases(task: tuple[int, int, tuple[int, ...], Config, str]) -> tuple[tuple[int, ...], Config, str]:
    """Compiles one candidate for some cases offline, so that Triton's cache holds it.

    ``task``: architecture, number of SMs, indices of the cases, candidate, device. Returns (indices, candidate, reason); the reason
    says why the candidate must not be launched, and is "" for others.
    """
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
    """A prepared case: its call, the result of the usual configuration, and that configuration's call to time."""

    call: Call
    outputs: Outputs
    timed: Callable[[], object]


@dataclass
class Times:
    """Median milliseconds of a candidate and of the usual configuration;

    ``gain``: median of usual over candidate, round by round.
    """

    ms: float
    usual_ms: float
    gain: float
    spread: float

    def row(self) -> dict:
        return {"ms": self.ms, "usual_ms": self.usual_ms, "gain": self.gain, "spread": self.spread}


def time_interleaved(mine: Callable[[], object], usual: Callable[[], object], device: str) -> Times:
    """Times candidate and usual configuration in rounds, one after the other, every second round in reverse.

    On a GPU a sample lasts at least ``SAMPLE_MS``.
    """
    estimate = max(timing.once_ms(usual, device), 1e-4)
    repeats = max(1, math.ceil(SAMPLE_MS / estimate)) if device == "cuda" else 1
    mine_ms, usual_ms = [], []
    gc.disable()
    try:
        for index in range(ROUNDS[device]):
            order = ((mine, mine_ms), (usual, usual_ms))
            for call, samples in order if index % 2 else reversed(order):
                samples.append(timing.once_ms(call, device, repeats))
    finally:
        gc.enable()
    gains = [b / a for a, b in zip(mine_ms, usual_ms, strict=True)]
    middle = statistics.quantiles(gains, n=4)
    return Times(statistics.median(mine_ms), statistics.median(usual_ms), statistics.median(gains), middle[2] - middle[0])


def replayed(call: Call, device: str) -> Callable[[], object]:
    """The replay of a call as a CUDA graph, which needs no host. Raises RuntimeError where the call cannot be captured."""
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
    """What is wrong with a candidate's results, or ""."""
    for name, t in outputs.items():
        if not torch.equal(t, again[name]):
            return f"{name} differs between two runs"
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
        return time_interleaved(mine, usual.timed, device).row()
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
    """The items that were not begun. Cases whose first item, the usual configuration, has no time are left out.

    ``timed`` holds the cases with such a time; the caller adds to it on the way.
    """
    for index, configs in plan["items"]:
        for number, config in enumerate(configs):
            if number and index not in timed:
                break
            if (index, number) not in begun:
                yield index, number, tuple(config)


def compiled_again() -> Callable[[], int]:
    """Counts, from now on, the kernels that Triton's cache does not hold; returns a function that gives the count."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return lambda: 0
    from triton import knobs

    missed = []
    knobs.compilation.listener = lambda *, cache_hit, **_: None if cache_hit else missed.append(1)
    return lambda: len(missed)


def main(plan_file: str, rows_file: str) -> int:
    """Times the items of a plan until its deadline; the exit status is ``LOST`` where the device no longer answers."""
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
