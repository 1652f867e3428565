"""One run of ``fastssl train`` with its defaults, as a process of one thread: its scores by epoch and the seconds of CPU it took.

The seconds are those of the whole command: imports, data, training, every evaluation, the linear probes at both ends. On one thread
they hardly depend on what else the machine does, unlike the time by the clock.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.core.machine import ROOT, describe, run_stamp

RESULTS = ROOT / "benchmarks" / "results"
FOLDER = "methods"  # in the folder of a machine's results


def file_of(command: list[str]) -> str:
    """The name of a result file: that of ``["bert", "--task", "nsp"]`` begins with bert-task-nsp."""
    return re.sub(r"[^a-z0-9_]+", "-", " ".join(command).lower()).strip("-") + ".json"


def cpu_seconds(command: list[str], log: Path) -> float:
    """Runs a command on one thread and returns its user and system seconds; raises where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}:\n{log.read_text()[-2000:]}")
    return used.ru_utime + used.ru_stime


def measure(options: list[str], seed: int = 0) -> dict:
    """``fastssl train`` with these options, the method first -> the result."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fastssl", "train", *options, "--seed", str(seed), "--out", str(out)]
        seconds = cpu_seconds([*command, "--accelerator", "cpu", "--map", "none"], Path(folder) / "log.txt")
        own = torch.load(out / "last.ckpt", weights_only=True)["fastssl"]
    return {
        "command": f"fastssl train {' '.join(options)}",
        "seed": seed,
        "cpu_seconds": round(seconds, 1),
        "history": own["history"],
        "machine": describe("cpu"),
        **run_stamp(),
    }


def save(found: dict, results: Path = RESULTS) -> Path:
    """Writes a result into the folder of its machine."""
    path = results / found["machine"]["slug"] / FOLDER / file_of(found["command"].split()[2:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def all_runs(results: Path = RESULTS) -> dict[str, dict]:
    """The options of a run -> its newest result of any machine."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob(f"*/{FOLDER}/*.json"))]
    found.sort(key=lambda run: run["date"])
    return {run["command"].removeprefix("fastssl train "): run for run in found}
