"""The folder of a run: made, locked while a process trains there, and the files of an earlier run moved aside."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from fastssl._aside import no_link
from fastssl._ending import PLACE, say
from fastssl.train import UsageError

try:
    import fcntl
except ImportError:  # no POSIX: no lock
    fcntl = None  # type: ignore[assignment]

ERROR = "error.txt"  # the traceback of what ended the training
ERROR_OF_EVAL = "error-eval.txt"
LOCK, LOCK_BEGINS, MOST_OF_LOCK = ".lock", "process ", 1000  # characters of the lock's file that are shown
CONFIG = "config.yaml"  # the options that repeat the run
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "last.partial")
FINE_TUNED = ("fine_tuned.ckpt", "fine_tuned.partial")
DRAWN: tuple[str, ...] = (
    "curves.png",
    "map.png",
    "reconstruction.png",
    "attention.png",
    "clusters.png",
    "answers.png",
    "colours.png",
    "completions.png",
)
DRAWN += ("next_frames.png", "colour_tracking.png", "spectrograms.png", "few_shot.png", "retrieval.png")
SCORES, REPORT = "scores.json", "report.html"
LOGS = ("csv", "tensorboard")  # folders with one for each start of the run
OF_OTHERS = tuple(f"{stem}_{name}" for stem in ("fine_tuned", "previous") for name in (*FINE_TUNED, *DRAWN, REPORT))
OWN_FILES = (*CHECKPOINTS, *FINE_TUNED, *DRAWN, SCORES, REPORT, *OF_OTHERS, CONFIG, ERROR, ERROR_OF_EVAL, "export", *LOGS)
EARLIER = re.compile(r"earlier-\d+")
VERSION = re.compile(r"version_([0-9]{1,9})")


def holds_run(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder with entries of these names is that of a run, also of one that was killed before its first checkpoint."""
    names = set(names)
    if not names.isdisjoint(CHECKPOINTS):
        return True
    path = folder / LOCK
    try:
        if LOCK not in names or not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(LOCK_BEGINS)) == LOCK_BEGINS.encode()
    except OSError:
        return False


def name_beside(checkpoint: Path, name: str, *, own: bool) -> str:
    """What a file about a checkpoint is called in its folder; ``own``: whether it is the one that the run there is known by.

    Examples:
        >>> name_beside(Path("run/last.ckpt"), "map.png", own=True)
        'map.png'
        >>> name_beside(Path("run/fine_tuned.ckpt"), "map.png", own=False)
        'fine_tuned_map.png'
    """
    return name if own else f"{checkpoint.stem}_{name}"


def drawn_of_checkpoints(names: Iterable[str]) -> set[str]:
    """What the pictures are called that ``fastssl eval`` draws in a folder with entries of these names."""
    stems = [name.removesuffix(".ckpt") for name in names if name.endswith(".ckpt")]
    return {before + name for before in ("", *(f"{stem}_" for stem in stems)) for name in DRAWN} if stems else set()


def written_by_run(name: str) -> bool:
    """Whether an entry of a run's folder is the run's own by its name."""
    return name in OWN_FILES or name == LOCK or EARLIER.fullmatch(name) is not None


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Inside this context no other process trains into ``out``, which is made where it is missing.

    The lock is the operating system's, on the file ``.lock``: it goes with its process however that ends, so that a run that was
    killed can be resumed at once, and a ``.lock`` left behind means nothing. It holds between hosts where their common file system
    passes locks on, as NFS does by default.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / LOCK, "a+", encoding="utf-8", opener=no_link)  # noqa: SIM115  open as long as the lock
    except FileExistsError:
        raise UsageError(f"--out {out}: is a file, not a directory") from None
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or f'{LOCK} there is no file'}") from error
    with file:
        lock(file, out)
        PLACE.folder = out
        yield


def holder(out: Path) -> str | None:
    """The process that trains in a run's folder now, such as "process 7 on HOST (since ...)"; None where none does."""
    try:
        with open(out / LOCK, encoding="utf-8", errors="replace", opener=no_link) as file:
            if fcntl is None:
                return None
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back when the file is closed
            except (BlockingIOError, PermissionError):
                return file.read(MOST_OF_LOCK).strip() or "another process"
    except OSError:
        pass
    return None


def lock_alone(file: int) -> None:
    """Locks an open file, also where ``holder`` looks at its lock for a moment. Raises BlockingIOError or PermissionError."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        time.sleep(0.1)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(file: TextIO, out: Path) -> None:
    """Locks the open file, and writes into it which process has done so."""
    try:
        if fcntl is not None:  # of the process, not of the open file: forked workers that outlive it do not keep it
            lock_alone(file.fileno())
    except (BlockingIOError, PermissionError):
        file.seek(0)
        other = file.read(MOST_OF_LOCK).strip() or "another process"
        raise UsageError(f"--out {out}: {other} is training there; wait for it, or name another --out") from None
    except OSError as error:  # a file system without locks
        say(f"warning: {out} cannot be locked ({error.strerror}); take care that no other run writes there", error=True)
    try:
        file.seek(0)
        file.truncate()
        file.write(f"{LOCK_BEGINS}{os.getpid()} on {socket.gethostname()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")
        file.flush()
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error


def refuse_links(out: Path) -> None:
    """Raises UsageError where a link lies in the place of a folder of logs, through which a run would write elsewhere."""
    for name in LOGS:
        path = out / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            kind = "link" if path.is_symlink() else "file"
            raise UsageError(f"--out {out}: {name} there is a {kind}, and must be a folder; move it away")


def next_version(out: Path) -> int:
    """The number of this start of a run: one that no folder of logs has yet."""
    known = [int(found[1]) for name in LOGS for path in (out / name).glob("version_*") if (found := VERSION.fullmatch(path.name))]
    return 1 + max(known, default=-1)


def set_earlier_run_aside(out: Path) -> None:
    """Moves the files of an earlier run to ``out/earlier-N``: nothing that was trained is lost to a forgotten --resume."""
    own = [out / name for name in OWN_FILES if os.path.lexists(out / name)]
    if not own:
        return
    aside = next(path for n in range(1, 10_000) if not os.path.lexists(path := out / f"earlier-{n}"))
    aside.mkdir()
    for path in own:
        path.rename(aside / path.name)
    say(f"{out} held a run: moved to {aside} (--resume would have continued it)")
