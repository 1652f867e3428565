"""Runs the calls of one function in a child process, so that one that kills it costs itself alone."""

import json
import os
import re
import resource
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import judge
from .table import Case
from .values import words

MEMORY = 8 << 30  # address space of a child above the parent's: a call that wants more gets torch's out-of-memory
PATIENCE = 30.0  # seconds for one call


@dataclass
class Report:
    counts: dict[str, int] = field(default_factory=lambda: {"served": 0, "refused": 0, "memory": 0, "judged": 0})
    faults: list[tuple[int, int, str, str, str]] = field(default_factory=list)  # seed, call, kind, what, arguments


def describe(case: Case, seed: int | bytes, number: int) -> str:
    arguments, spoiled = judge.make(case, seed, number)
    call = ", ".join(f"{name}={words(value)}" for name, value in arguments.items() if value is not None)
    return f"{'; '.join(spoiled) or 'nothing odd'} | {case.name}({call})"


def _child(case: Case, calls: list[tuple[int, int]], pipe: int) -> None:
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    for seed, number in calls:
        os.write(pipe, f"{json.dumps(['at', seed, number])}\n".encode())
        verdict = judge.judge(case, seed, number)
        line = [verdict.kind, verdict.judged, [(kind, what, describe(case, seed, number)) for kind, what in verdict.faults]]
        os.write(pipe, f"{json.dumps(line)}\n".encode())


def _lines(pipe: int, pid: int) -> Iterator[str]:
    """Of the child, until it ends; one that says nothing for too long is killed."""
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], PATIENCE)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            yield json.dumps(["late"])
            return
        part = os.read(pipe, 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode() for line in lines)


def fuzz(case: Case, calls: list[tuple[int, int]]) -> Report:
    """Every call of ``calls``, (seed, number) each."""
    report, left = Report(), list(calls)
    while left:
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(out)
                _child(case, left, into)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(into)
        at, late = left[0], False
        for line in _lines(out, pid):
            said = json.loads(line)
            if said[0] == "at":
                at = (said[1], said[2])
                continue
            if said[0] == "late":
                late = True
                continue
            report.counts[said[0]] += 1
            report.counts["judged"] += said[1]
            report.faults += [(*at, *fault) for fault in said[2]]
        os.close(out)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        end = f"took more than {PATIENCE:.0f} s" if late else f"killed by signal {os.WTERMSIG(status)}"
        end = end if late or os.WIFSIGNALED(status) else "the judge itself failed"
        report.faults.append((*at, "crash", end, describe(case, *at)))
        left = left[left.index(at) + 1 :]
    return report


def kinds_of(report: Report) -> dict[str, list[tuple]]:
    """Faults that differ in numbers alone are one kind."""
    found: dict[str, list[tuple]] = {}
    for fault in report.faults:
        found.setdefault(re.sub(r"[-+]?\d[\d.e+-]*|nan|inf", "#", f"{fault[2]}: {fault[3]}")[:110], []).append(fault)
    return found
