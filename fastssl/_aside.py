"""Files and folders that are written aside and take their place when they are whole.

What is written aside has a random name of its own, and its process holds a lock on it. So two processes may write the same target,
a link in its place is not followed, and what a killed process has left is known by its name and its missing lock: the next one that
writes in the folder removes it.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # no POSIX: no locks, and nothing that others may have left is removed
    fcntl = None  # type: ignore[assignment]

LEFT = re.compile(r"\.[0-9a-f]{16}\.(partial|folder)")
EXCHANGE, HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def no_link(path: str, flags: int) -> int:
    """An ``opener`` of ``open`` that follows no link at the end of the path, and does not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def locked(number: int, *, wait: bool) -> bool:
    """Locks an open file or folder; False where somebody else holds it, or where the system has no locks for it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_left(folder: Path) -> None:
    """Removes from a folder what was written aside there by processes that were killed."""
    with contextlib.suppress(OSError):
        for name in filter(LEFT.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                remove_unheld(folder / name)


def remove_unheld(path: Path) -> None:
    """Removes a file or a folder unless a process holds it. Raises ``OSError`` for a link, and for what may not be removed."""
    number = no_link(os.fspath(path), os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        if not locked(number, wait=False):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(number)


def aside(folder: Path, kind: str) -> tuple[Path, int]:
    """A new file ("partial") or folder ("folder") in ``folder``, and the number of it, open and locked."""
    while True:
        path = folder / f".{secrets.token_hex(8)}.{kind}"
        try:
            if kind == "folder":
                path.mkdir()
                number = os.open(path if fcntl is not None else os.devnull, os.O_RDONLY)
            else:
                number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileNotFoundError:
            if folder.is_dir():  # somebody removed the new one, which was not locked yet
                continue
            raise
        locked(number, wait=True)
        if path.exists():
            return path, number
        os.close(number)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends well, so that what is there is always whole."""
    remove_left(path.parent)
    partial, number = aside(path.parent, "partial")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        if fcntl is not None:
            stack.callback(os.close, os.dup(number))  # the lock stays until the file has its place
        with os.fdopen(number, "wb") as file:
            yield file
        os.replace(partial, path)


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is whole at any moment. What UTF-8 does not have becomes an escape."""
    with replaced(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def folder_aside(near: Path) -> Iterator[Path]:
    """A new folder in ``near``, of which nothing is left when the block ends, but what was moved away."""
    remove_left(near)
    folder, number = aside(near, "folder")
    try:
        yield folder
    finally:
        os.close(number)
        shutil.rmtree(folder, ignore_errors=True)


def exchanged(one: Path, other: Path) -> bool:
    """Exchanges two paths of a file system in one act; False, and nothing is done, where the system has no such act."""
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
        return call(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):
        return False
