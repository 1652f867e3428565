"""Hours of work: no growth of memory, threads or open files.

Three kinds: every op and loss of the table of cases, forward and backward ``--times`` times; runs of ``fastssl train`` and
``fastssl eval`` in this process, one after the other; one long ``fastssl train`` in a process of its own. The last two take
``--minutes`` each.
"""

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastssl.testing.cases import CASES

from .apart import command
from .runs import SMALL, short_run, write_grey_classes

MIB = 1 << 20
MOST = 24  # MiB that memory may grow after the warm-up, which is what the allocator of the C library keeps in pieces
WARM, FIRST = 0.25, 2  # share of the time, and runs, before memory is looked at


@dataclass(frozen=True)
class Held:
    """What a process holds: MiB of memory, threads, open files."""

    memory: float
    threads: int
    files: int

    def __str__(self) -> str:
        return f"{self.memory:.0f} MiB, {self.threads} threads, {self.files} open files"

    def grown(self, before: "Held") -> bool:
        return self.memory - before.memory > MOST or self.threads > before.threads or self.files > before.files


def held(pid: int | str = "self") -> Held:
    if pid == "self":
        gc.collect()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Held(pages * os.sysconf("SC_PAGESIZE") / MIB, len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))


def once(case, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The result of a case and the gradients of its inputs."""
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    out = case.ours(**leaves)
    out.sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


def ops(times: int) -> tuple[str, Held, Held]:
    """Every case of the table, at a shape of a few rows."""
    given = {name: case.inputs(case.shapes[1], torch.float32, "cpu", 0) for name, case in CASES.items()}
    for name, case in CASES.items():
        for _ in range(max(20, times // 10)):
            once(case, given[name])
    before = held()
    for name, case in CASES.items():
        for _ in range(times):
            once(case, given[name])
    return f"{len(CASES)} cases of the table, {times} times each", before, held()


def runs(minutes: float, folder: Path) -> tuple[str, Held, Held]:
    """Runs of SimCLR and their evaluation, in this process."""
    started, before = time.monotonic(), None
    for count in itertools.count():
        if count == FIRST:
            before = held()
        if count >= 3 * FIRST and time.monotonic() - started >= 60 * minutes:
            break
        out = folder / str(count)
        short_run("simclr", folder / "images", out)
        code, _, said = command(["eval", str(out)])
        if code:
            raise RuntimeError(said)
        shutil.rmtree(out)
    assert before is not None
    return f"{count} runs and evaluations in one process, {FIRST} of them to warm up", before, held()


def long_run(minutes: float, folder: Path) -> tuple[str, Held, Held]:
    """One run of the command line, until it is stopped."""
    options = ["--data", f"folder:{folder / 'images'}", *SMALL, "--epochs", "1000000", "--out", str(folder / "long")]
    words = [sys.executable, "-m", "fastssl", "train", "moco", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    lines: list[str] = []
    while len(lines) < 8:  # the first epochs are done
        lines.append(process.stdout.readline())
    started, before = time.monotonic(), None
    os.set_blocking(process.stdout.fileno(), True)
    while time.monotonic() - started < 60 * minutes:
        lines.append(process.stdout.readline())
        if before is None and time.monotonic() - started >= 60 * WARM * minutes:
            before = held(process.pid)
    after = held(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    if process.returncode != 128 + signal.SIGTERM or before is None:
        raise RuntimeError(f"the run ended with {process.returncode}")
    epochs = sum(line.startswith("epoch") for line in lines)
    return f"one run by the command line, {epochs} epochs", before, after


def main(options) -> int:
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        write_grey_classes(Path(place) / "images")
        for work in (
            lambda: ops(options.times),
            lambda: runs(options.minutes, Path(place)),
            lambda: long_run(options.minutes, Path(place)),
        ):
            what, before, after = work()
            grown = after.grown(before)
            print(f"soak: {what}: {before} after the warm-up, {after} at the end{', which is more' * grown}", flush=True)
            bad += grown
    return bad
