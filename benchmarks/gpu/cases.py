"""The process of a GPU run that measures cases one after another, or fills the compilers' caches:

    python -m benchmarks.gpu.cases CASES.json --progress FILE [--first K] [--out DIR [--smoke] | --warm] ...

CASES.json is a list of {"work", "shape", "dtype", "peers"}. FILE gets a line of JSON when a case begins and when it ends, so that
the process that watches knows which case hangs or took the process down. The exit status is 3 where the device context is lost.
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
from benchmarks.core.registry import WORKS, shape_name
from benchmarks.core.workloads import Update
from benchmarks.peers import implementation, load
from benchmarks.report import tables as report

CONTEXT_LOST = 3


@dataclass(frozen=True)
class Case:
    """A work at one shape, and the peers that take part."""

    work: str
    shape: tuple
    dtype: str
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.work} {shape_name(self.shape)} {self.dtype}"


def write_cases(cases: list[Case], path: Path) -> Path:
    path.write_text(json.dumps([asdict(case) for case in cases], indent=1))
    return path


def read_cases(path: Path) -> list[Case]:
    return [Case(c["work"], tuple(c["shape"]), c["dtype"], tuple(c["peers"])) for c in json.loads(path.read_text())]


def bound(case: Case, name: str, device: str) -> Callable[[], object]:
    """One forward and backward, or one step, of an implementation on inputs of its own."""
    work, call = WORKS[case.work], implementation(name, WORKS[case.work])
    dtype = work.dtype(getattr(torch, case.dtype))
    if isinstance(work, Update):
        return call(work.case.state(case.shape, dtype=dtype, device=device))
    inputs = work.case.inputs(case.shape, dtype=dtype, device=device)
    return partial(accuracy.turn, call, accuracy.leaves(inputs, constant=work.constant_inputs))


def warm(case: Case, device: str) -> str:
    """Runs our kernels and those of the case's peers once, untimed; "" or what failed. Compilers keep their results on disk."""
    failed = []
    for name in (runner.OURS, *case.peers):
        if name != runner.OURS and load(name).unfit(WORKS[case.work], case.shape, device)[0]:
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
    """Times the case and writes its result file; "" or what is wrong with our own entry."""
    options = runner.Options(
        device=args.device,
        dtype=getattr(torch, case.dtype),
        peers=case.peers,
        budget_s=args.loss_budget if WORKS[case.work].kind == "loss" else args.update_budget,
        memory=args.device == "cuda" and not args.smoke,
        graphs=args.device == "cuda" and not args.smoke,
    )
    work = WORKS[case.work]
    found = runner.result(work, args.device, [runner.run_case(work, case.shape, options)])
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cases", description="measures a list of cases")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--progress", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--out", type=Path, help="folder of result files, in a folder for each machine")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="right or wrong, and a first time; no memory, no graphs")
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
