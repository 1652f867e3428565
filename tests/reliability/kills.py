"""``kill -9`` at random points of a run, and as many resumes: the run ends with the bits of one that was not killed.

Half of the kills come after a random time that the process has computed, the others while it writes a checkpoint: before the file
is flushed, before the former one is renamed, between the two renames, after them.
"""

import functools
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .apart import command
from .checkpoints import saved_alike
from .runs import SMALL, write_grey_classes

EPOCHS = 8
TICK = os.sysconf("SC_CLK_TCK")
SAME = ("state_dict", "optimizer_states", "lr_schedulers", "fastssl")


def seconds_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICK


def dies_in(name: str, left: int) -> None:
    """From now on this process kills itself in a call of this function of ``os``, before it does anything."""
    call = getattr(os, name)

    def dies(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    setattr(os, name, dies)


def run(
    argv: list[str], log: Path, *, seconds: float | None = None, prepare: Callable[[], object] | None = None
) -> tuple[int, float]:
    """The wait status of ``fastssl argv`` in a child process, and the CPU seconds that it took.

    ``seconds``: of CPU time, after which it is killed. ``prepare``: what it does before. What it says is written to ``log``.
    """
    before, code = sum(os.times()[2:4]), 99
    with log.open("w") as file:  # before the fork: the child may lose the right to
        if (pid := os.fork()) == 0:
            try:
                if prepare is not None:
                    prepare()
                code, out, err = command(argv)
                file.write(out + err)
                file.flush()
            finally:
                os._exit(code)
    while seconds is not None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, sum(os.times()[2:4]) - before
        if seconds_of(pid) >= seconds:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    _, status = os.waitpid(pid, 0)
    return status, sum(os.times()[2:4]) - before


def differences(ours: Path, theirs: Path) -> list[str]:
    one, other = (torch.load(path / "last.ckpt", weights_only=True) for path in (ours, theirs))
    return [
        f"{ours.name}: {name} is not that of the run that was not killed"
        for name in SAME
        if not saved_alike(one[name], other[name])
    ]


def kill_and_resume(argv: list[str], folder: Path, whole: Path, times: int, seconds: float, chance: random.Random) -> dict:
    """Kills runs of ``argv`` ``times`` times; each is gone on with until it ends -> counts, and what went wrong."""
    found: dict = {"kills": 0, "while a file was written": 0, "resumes": 0, "runs": 0, "wrong": []}
    out, log, resume = folder / "killed 0", folder / "log", False
    while found["kills"] < times or resume:
        how: dict = {}
        if found["kills"] < times:
            dies = functools.partial(dies_in, chance.choice(("fsync", "replace")), chance.randint(1, 4))
            how = {"prepare": dies} if found["kills"] % 2 else {"seconds": chance.uniform(0, seconds / 3)}
        status, _ = run([*argv, "--out", str(out), *["--resume"] * resume], log, **how)
        found["resumes"] += resume
        if os.WIFSIGNALED(status):
            found["kills"] += 1
            found["while a file was written"] += "prepare" in how
            resume = True
        elif status:
            found["wrong"].append(f"{out.name} ended with {os.waitstatus_to_exitcode(status)}: {log.read_text()[-500:]}")
            return found
        else:
            found["runs"] += 1
            found["wrong"] += differences(out, whole)
            out, resume = folder / f"killed {found['runs']}", False
    return found


def main(options) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_grey_classes(folder / "images")
        argv = ["train", "moco", "--data", f"folder:{folder / 'images'}", *SMALL, "--epochs", str(EPOCHS)]
        command([*argv, "--epochs", "1", "--out", str(folder / "first")])  # what it imports it imports once
        status, seconds = run([*argv, "--out", str(folder / "whole")], folder / "log")
        if status:
            raise RuntimeError((folder / "log").read_text())
        found = kill_and_resume(argv, folder, folder / "whole", options.times, seconds, random.Random(options.times))
    kills = f"{found['kills']} kills ({found['while a file was written']} of them while a file was written)"
    ends = f"{found['runs']} runs ended, {len(found['wrong'])} with other bits or an error"
    print(f"kills: {kills}, {found['resumes']} resumes, {ends}")
    print(*found["wrong"], sep="\n", end="\n" * bool(found["wrong"]))
    return len(found["wrong"])
