"""What disks do to a run: no room, no right to write, data or the run's folder gone in the middle.

The run must end with a sentence and a right exit code, or go on; and what it saved before must load.

A full disk is a small file system in memory where this user may mount one, and else a limit of the size of files.
"""

import functools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from .apart import command
from .kills import run
from .runs import SMALL, write_grey_classes

NOBODY = 65534


def at_step(step: int, act: Callable[[], object]) -> None:
    """From now on this process does ``act`` at the end of that training step."""
    from fastssl.train import loop

    before = loop.Steps.step

    def then(steps, loss):
        before(steps, loss)
        if steps.done == step:
            act()

    loop.Steps.step = then


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def no_right(folder: Path) -> None:
    """From now on this process may not write in ``folder``."""
    os.chmod(folder, 0o555)
    if os.geteuid() == 0:  # who may write everywhere
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def forget(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def fill(folder: Path) -> None:
    """Leaves no room on the file system of ``folder``."""
    with open(folder / "filler", "wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass


def mounted(folder: Path) -> bool:
    """Whether a file system of 64 MiB could be mounted there."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0


def trials(place: Path, disk: Path | None) -> dict[str, tuple[Path, Path, Callable[[], object], set[int], bool]]:
    """Name -> folder of the run, of its images, what happens in its process before, exit codes, whether a checkpoint stays."""
    images, closed = place / "images", place / "closed"
    closed.mkdir(mode=0o755)
    gone, some = place / "gone", place / "some"
    for folder in (gone, some):
        shutil.copytree(images, folder)
    os.chmod(place, 0o755)

    def in_epoch_2(act: Callable, folder: Path) -> Callable[[], object]:
        return functools.partial(at_step, 4, functools.partial(act, folder))

    a, b, c, d = (place / letter for letter in "abcd")
    found = {
        "files may have 1 MiB": (place / "limited", images, functools.partial(limit_files, 1 << 20), {1}, False),
        "no right to write": (closed / "run", images, functools.partial(no_right, closed), {2}, False),
        "the right to write is lost in epoch 2": (a, images, in_epoch_2(no_right, a), {1}, True),
        "all images vanish in epoch 2": (b, gone, in_epoch_2(forget, gone), {2}, True),
        "a class vanishes in epoch 2": (c, some, in_epoch_2(forget, some / "dark"), {0, 2}, True),
        "the run's folder vanishes in epoch 2": (d, images, in_epoch_2(forget, d), {0, 1}, False),
    }
    if disk is not None:
        found["the disk is full from epoch 2 on"] = (disk / "run", images, in_epoch_2(fill, disk), {1}, True)
    return found


def judge(out: Path, status: int, codes: set[int], said: str, kept: bool) -> str:
    """What is wrong with how a run ended, or ""."""
    from fastssl.train.checkpoints import find_checkpoint

    code = os.waitstatus_to_exitcode(status)
    errors = [line for line in said.splitlines() if "error: " in line]
    if code not in codes or "unexpected" in said or "Traceback" in said or len(errors) != (code != 0):
        return f"exit code {code}: {said[-400:]}"
    if kept and find_checkpoint(out) is None:
        return "no checkpoint was kept"
    return ""


def main(options) -> int:
    torch.set_num_threads(1)
    bad, count = [], 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_grey_classes(place / "images")
        command(["train", "simclr", "--data", f"folder:{place / 'images'}", *SMALL, "--epochs", "1", "--out", str(place / "first")])
        disk = place / "disk" if mounted(place / "disk") else None
        try:
            for what, (out, images, prepare, codes, kept) in trials(place, disk).items():
                log = place / "log"
                log.write_text("nothing was said")
                argv = ["train", "simclr", "--data", f"folder:{images}", *SMALL, "--epochs", "3", "--out", str(out)]
                status, _ = run(argv, log, prepare=prepare)
                said = log.read_text()
                wrong = judge(out, status, codes, said, kept)
                line = next((line for line in said.splitlines() if "error: " in line), "no error")
                print(f"disks, {what}: exit code {os.waitstatus_to_exitcode(status)}: {line.replace(name, '...')}", flush=True)
                bad, count = bad + [f"{what}: {wrong}"] * bool(wrong), count + 1
        finally:
            if disk is not None:
                subprocess.run(["umount", str(disk)], check=False)
    print(f"disks: {count} trials, {len(bad)} without a sentence, a right exit code or the last checkpoint")
    print(*bad, sep="\n", end="\n" * bool(bad))
    return len(bad)
