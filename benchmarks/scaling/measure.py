"""Measures losses over 1 to 4 processes on this machine, on gloo:  python -m benchmarks.scaling.measure [--save]

For each number of processes and each transport: peak memory and bytes sent of the process that has most of them, and how long a
step of the ring takes beside one of the gather. ``--save`` writes one file for each loss under benchmarks/results. Imports
``model``, ``worker``, and ``benchmarks.core``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.core import machine, runner
from benchmarks.core.memory import _GIVE_BACK, ROOT
from benchmarks.report.tables import RESULTS
from benchmarks.scaling.model import Problem, sent
from benchmarks.scaling.worker import LOSSES

WORLDS, TRANSPORTS = (1, 2, 3, 4), ("gather", "ring")
#: N and D of the saved measurements: rows and columns of 8 MB in float32, four parts of a ring.
SHAPE = 4096, 512


def start(loss: str, rows: int, width: int, world: int, what: str, *transports: str, timeout_s: float = 900) -> list[dict]:
    """What each of ``world`` processes measured. Raises RuntimeError where one of them failed."""
    environment = os.environ | _GIVE_BACK | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        words = [loss, rows, width, None, world, Path(folder) / "store", what, *transports]
        commands = [[str(rank if word is None else word) for word in words] for rank in range(world)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scaling.worker", *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in commands
        ]
        try:
            said = [process.communicate(timeout=timeout_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, (_, error) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"scaling: a process ended with {process.returncode}: {error.strip()[-800:]}")
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in said]


def problem(loss: str, rows: int, width: int, world: int) -> Problem:
    """The problem of the model that a loss of B rows is, in float32."""
    views = 2 if loss == "nt_xent" else 1
    return Problem(views * rows, width, world, directions=2 if loss == "clip" else 1, itemsize=4)


def case(loss: str, rows: int, width: int, world: int, say=print) -> dict:
    """Everything that is measured of one loss with one number of processes."""
    entries = []
    for transport in TRANSPORTS if world > 1 else ("alone",):
        say(f"{loss} {rows} x {width}, {world} processes, {transport}: memory and bytes")
        found = start(loss, rows, width, world, "memory", transport)
        entry = {"transport": transport}
        entry |= {name: max(each[name] for each in found) for name in ("resident_mb", "allocated_mb")}
        entry |= {"sent": [sum(each["sent"].values()) for each in found], "by_collective": found[0]["sent"]}
        entries.append(entry)
    if world > 1:
        say(f"{loss} {rows} x {width}, {world} processes: times")
        found = start(loss, rows, width, world, "time", *TRANSPORTS)
        for entry in entries:
            entry["seconds"] = max(each["seconds"][entry["transport"]] for each in found)
            entry["predicted_sent"] = sent(problem(loss, rows, width, world), entry["transport"])
    return {"shape": [rows, width], "world": world, "dtype": "float32", "entries": entries}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.measure", description=__doc__.partition(":")[0])
    parser.add_argument("losses", nargs="*", metavar="LOSS", help=f"of {', '.join(LOSSES)}; all by default")
    parser.add_argument("--rows", type=int, default=SHAPE[0], metavar="N")
    parser.add_argument("--width", type=int, default=SHAPE[1], metavar="D")
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS, metavar="W")
    parser.add_argument("--save", action="store_true", help="write result files")
    args = parser.parse_args(argv)
    for loss in args.losses or LOSSES:
        stamp = machine.run_stamp()
        cases = [case(loss, args.rows, args.width, world) | stamp for world in args.worlds]
        found = {"schema": runner.SCHEMA, "work": loss, "machine": machine.describe("cpu") | {"threads": 1}, "cases": cases}
        if args.save:
            path = RESULTS / found["machine"]["slug"] / "processes" / f"{loss}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(cases, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
