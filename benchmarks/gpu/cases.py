"""The process of a GPU run that measures cases one after another, or fills the compilers' caches.

    python -m benchmarks.gpu.cases CASES.json --progress FILE [--first K] [--out DIR [--smoke] | --warm] ...

CASES.json is a list of {"workload", "shape", "dtype", "peers"}. FILE gets a line of JSON when a case begins and when it ends, so
that the process that watches knows which case hangs or took the process down. The exit status is 3 where the device context is
lost. Imports ``core``, ``peers`` and ``report``.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.core import accuracy, runner
from benchmarks.core.prepared import release
from benchmarks.core.registry import WORKLOADS, shape_name
from benchmarks.core.workloads import Update
from benchmarks.peers import implementation, load
from benchmarks.report import tables as report

CONTEXT_LOST = 3


@dataclass(frozen=True)
class Case:
    """A workload at one shape, and the peers that take part."""

    workload: str
    shape: tuple
    dtype: str
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.workload} {shape_name(self.shape)} {self.dtype}"


def write_cases(cases: list[Case], path: Path) -> Path:
    path.write_text(json.dumps([asdict(case) for case in cases], indent=1))
    return path


def read_cases(path: Path) -> list[Case]:
    return [Case(c["workload"], tuple(c["shape"]), c["dtype"], tuple(c["peers"])) for c in json.loads(path.read_text())]


def bound(case: Case, name: str, device: str) -> Callable[[], object]:
    """One forward and backward, or one step, of an implementation on inputs of its own."""
    workload, call = WORKLOADS[case.workload], implementation(name, WORKLOADS[case.workload])
    dtype = workload.dtype(getattr(torch, case.dtype))
    if isinstance(workload, Update):
        return call(workload.case.state(case.shape, dtype=dtype, device=device))
    inputs = workload.case.inputs(case.shape, dtype=dtype, device=device)
    return partial(accuracy.timed_step, call, accuracy.leaves(inputs, constant=workload.constant_inputs))


def warm(case: Case, device: str) -> str:
    """Runs our kernels and those of the case's peers once, untimed: compilers keep their results on disk. Returns what failed."""
    failed = []
    for name in (runner.OURS, *case.peers):
        if name != runner.OURS and load(name).unfit(WORKLOADS[case.workload], case.shape, device)[0]:
            continue
        try:
            torch._dynamo.reset()
            bound(case, name, device)()
            if device == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # a peer's own code; the timed process will say so
            failed.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
        release(device)
    return "; ".join(failed)


def measure(case: Case, args) -> str:
    """Measures the case and writes its result file. Returns what is wrong with our own entry, or ""."""
    options = runner.Options(
        device=args.device,
        dtype=getattr(torch, case.dtype),
        peers=case.peers,
        budget_s=args.loss_budget if WORKLOADS[case.workload].kind == "loss" else args.update_budget,
        memory=args.device == "cuda" and not args.smoke,
        graphs=args.device == "cuda" and not args.smoke,
    )
    workload = WORKLOADS[case.workload]
    found = runner.result(workload, args.device, [runner.run_case(workload, case.shape, options)])
    runner.save(found, args.out / found["machine"]["slug"])
    print("\n" + report.case_table(found, found["cases"][0]) + "\n", flush=True)
    ours = found["cases"][0]["entries"][0]
    return "" if ours["status"] == "ok" else f"{ours['status']}: {ours['reason']}"


def _context_lost(device: str) -> bool:
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main(argv: list[str]) -> int:
    """Measures the cases of a file; the exit status is ``CONTEXT_LOST`` where the device no longer answers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cases", description="measures a list of cases")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--progress", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--out", type=Path, help="folder of result files; each machine gets a folder in it")
    parser.add_argument("--warm", action="store_true", help="only compile")
    parser.add_argument("--smoke", action="store_true", help="accuracy and a first time; no memory, no graphs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--loss-budget", type=float, default=3.0)
    parser.add_argument("--update-budget", type=float, default=1.0)
    args = parser.parse_args(argv)

    def say(**line) -> None:
        with args.progress.open("a") as progress:
            progress.write(json.dumps(line) + "\n")

    for index, case in list(enumerate(read_cases(args.cases)))[args.first :]:
        say(case=index, state="begin")
        begin = time.monotonic()
        print(f"=== {case}", flush=True)
        try:
            wrong = warm(case, args.device) if args.warm else measure(case, args)
        except Exception as error:  # the next case may work
            traceback.print_exc()
            wrong = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        lost = _context_lost(args.device)
        say(case=index, state=wrong or "ok", seconds=round(time.monotonic() - begin, 1))
        if lost:
            return CONTEXT_LOST
        release(args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
