"""Work in child processes with little memory: what kills a process costs itself alone, and is counted."""

import contextlib
import io
import json
import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

MEMORY = 1 << 30  # bytes of address space that a child has above its parent's
PATIENCE = 120  # seconds for one item
REFUSED, SERVED, FAULT = "refused", "served", "fault"


def _child(work: Callable[[object], str], items: list, into, memory: int) -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for item in items:
        signal.alarm(PATIENCE)
        try:
            said = work(item)
        except BaseException as error:
            traceback.print_exc()
            said = f"{FAULT}: {type(error).__name__}: {error}"
        into.write(f"{json.dumps(said)}\n")
        into.flush()


def apart(work: Callable[[object], str], items: Iterable, memory: int = MEMORY) -> list[str]:
    """What ``work(item)`` says of each item, in a child process that is started again when an item has killed it.

    The words begin with ``REFUSED``, ``SERVED`` or ``FAULT``; an exception and the end of the process are faults.
    """
    torch.set_num_threads(1)  # a child of fork lacks the threads of its parent
    items, said = list(items), []
    while len(said) < len(items):
        with tempfile.TemporaryFile("w+") as file:
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    _child(work, items[len(said) :], file, memory)
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            file.seek(0)
            said += [json.loads(line) for line in file.read().splitlines()]
        if status:
            said.append(f"{FAULT}: the process ended with {status}, of signal {os.WTERMSIG(status)}")
    return said


def command(argv: list[str]) -> tuple[int, str, str]:
    """``fastssl argv`` in this process: its exit code, what it printed, what it said of errors."""
    from fastssl.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


def counted(said: list[str]) -> str:
    """How many were refused, served and at fault."""
    return ", ".join(f"{sum(words.startswith(kind) for words in said)} {kind}" for kind in (REFUSED, SERVED, FAULT))


def faults(said: list[str], items: Iterable) -> list[str]:
    """The items at fault, each with what was said of it."""
    return [f"{item}: {words}" for item, words in zip(items, said, strict=True) if words.startswith(FAULT)]
