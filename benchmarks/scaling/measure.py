"""Measures losses over 1 to 4 processes on this machine, on gloo:  python -m benchmarks.scaling.measure [--save]

For each number of processes and each transport: peak memory and bytes sent of the process that has most of them, and how long a
step of the ring takes beside one of the gather, with half of the rows. ``--save`` writes one file for each loss under
benchmarks/results. Imports ``model``, ``worker``, and ``benchmarks.core``.
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
from benchmarks.report.tables import RESULTS, markdown, number
from benchmarks.scaling.model import Problem, sent
from benchmarks.scaling.worker import LOSSES

WORLDS, TRANSPORTS = (1, 2, 3, 4), ("gather", "ring")
#: Bytes that travel beside a column: its id.
BESIDE = {"info_nce": 4, "clip": 4, "nt_xent": 4}
#: N and D of the saved measurements: rows and columns of 4 MB in float32, two parts of a ring.
SHAPE = 2048, 512


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
    return Problem(views * rows, width, world, itemsize=4, beside=BESIDE[loss])


def predicted_sent(loss: str, rows: int, width: int, world: int, transport: str) -> float:
    """The formula's bytes. In CLIP's loss, what each process knows of a column goes home in the forward, 16 bytes, and comes back
    in the backward with the upstream gradient, 20 bytes; in NT-Xent it is so for rows."""
    columns = sent(problem(loss, rows, width, world), transport)
    if loss == "info_nce":
        return columns
    if loss == "nt_xent":  # each pair of processes once: a part of the ring goes half around, and its sums come straight home
        states = 2 * rows * (16 + 20)
        if transport == "gather":
            return columns + (world - 1) * states
        p = problem(loss, rows, width, world)
        return world // 2 * (2 * p.bytes(p.m) + p.gradient(p.m) + states)
    return columns + rows * (20 * (world - 1) + 16 * (world if transport == "ring" else world - 1))


def case(loss: str, rows: int, width: int, world: int, times: bool = True, say=print) -> dict:
    """What is measured of one loss with one number of processes."""
    entries = []
    for transport in TRANSPORTS if world > 1 else ("alone",):
        say(f"{loss} {rows} x {width}, {world} processes, {transport}: memory and bytes")
        found = start(loss, rows, width, world, "memory", transport)
        entry = {"transport": transport}
        entry |= {name: max(each[name] for each in found) for name in ("resident_mb", "allocated_mb")}
        entry |= {"sent": [sum(each["sent"].values()) for each in found], "by_collective": found[0]["sent"]}
        if world > 1:
            entry["predicted_sent"] = predicted_sent(loss, rows, width, world, transport)
        entries.append(entry)
    if world > 1 and times:
        say(f"{loss} {rows} x {width}, {world} processes: times")
        found = start(loss, rows // 2, width, world, "time", *TRANSPORTS)
        for entry in entries:
            entry["seconds"] = max(each["seconds"][entry["transport"]] for each in found)
    return {"shape": [rows, width], "world": world, "dtype": "float32", "entries": entries}


#: What a reader calls the losses.
_TITLES = {"info_nce": "InfoNCE", "clip": "CLIP", "nt_xent": "NT-Xent"}


def _lines(found: dict) -> list[tuple[str, ...]]:
    alone = next(case["entries"][0] for case in found["cases"] if case["world"] == 1)
    lines = []
    for case in found["cases"]:
        seconds = {entry["transport"]: entry.get("seconds") for entry in case["entries"]}
        for entry in case["entries"]:
            name = "" if entry["transport"] == "alone" else f"`{entry['transport']}`"
            memories = []
            for kind in ("resident_mb", "allocated_mb"):
                memories += [f"{number(entry[kind])} MB", f"{entry[kind] / alone[kind]:.2f}x"]
            bytes_sent = [f"{each / 1e6:.2f} MB" if name else "" for each in (max(entry["sent"]), entry.get("predicted_sent", 0))]
            ratio = f"{seconds['ring'] / seconds['gather']:.2f}x" if entry["transport"] == "ring" and seconds["ring"] else ""
            title = f"{_TITLES[found['work']]}, {case['shape'][0]:,} x {case['shape'][1]}"
            lines.append((title, str(case["world"]), name, *memories, *bytes_sent, ratio))
    return lines


def measured(folder: Path = RESULTS) -> str:
    """The table of the result files and where they come from. Files of uncommitted changes are left out."""
    files = [runner.read(path) for path in sorted(folder.glob("*/processes/*.json"))]
    files = [found for found in files if not any(case["commit"].endswith("-dirty") for case in found["cases"])]
    if not files:
        return "Nothing has been measured yet."
    head = (
        "loss, rows of a process x D",
        "processes",
        "transport",
        "peak memory",
        "of one process",
        "torch's tensors",
        "of one process",
    )
    head += ("sent", "the formula", "time of the ring / gather")
    info, cases = files[0]["machine"], [case for found in files for case in found["cases"]]
    dates, commits = ({case[name][:10] for case in cases} for name in ("date", "commit"))
    where = (
        f"{info['name']}, {info['cores']} cores, torch {info['versions']['torch']}, gloo, one thread a process, float32; "
        f"measured on {' and '.join(sorted(dates))}, commit {', '.join(sorted(commits))}."
    )
    lines = [line for found in files for line in _lines(found)]
    if not any(line[-1] for line in lines):
        head, lines = head[:-1], [line[:-1] for line in lines]
    return f"{where}\n\n{markdown(head, lines)}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.measure", description=__doc__.partition(":")[0])
    parser.add_argument("losses", nargs="*", metavar="LOSS", help=f"of {', '.join(LOSSES)}; all by default")
    parser.add_argument("--rows", type=int, default=SHAPE[0], metavar="N")
    parser.add_argument("--width", type=int, default=SHAPE[1], metavar="D")
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS, metavar="W")
    parser.add_argument("--no-times", action="store_true", help="measure memory and bytes only")
    parser.add_argument("--save", action="store_true", help="write result files")
    args = parser.parse_args(argv)
    for loss in args.losses or LOSSES:
        stamp = machine.run_stamp()
        cases = [case(loss, args.rows, args.width, world, not args.no_times) | stamp for world in args.worlds]
        found = {"schema": runner.SCHEMA, "work": loss, "machine": machine.describe("cpu") | {"threads": 1}, "cases": cases}
        if args.save:
            path = RESULTS / found["machine"]["slug"] / "processes" / f"{loss}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(cases, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
