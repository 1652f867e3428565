"""How a command ends: one line and an exit code on signals, errors, full disks, closed outputs; two runs into one folder."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastssl import _ending
from fastssl.__main__ import main
from fastssl._ending import STOP, Failure, Stopped, UsageError, ended
from tests.support.training import needs_train

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["--data", "digits", "--image-size", "16", "--map", "none", "--accelerator", "cpu", "--workers", "0"]


def kill_self(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # the handler runs here at the latest


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    "error, code, words",
    [
        (UsageError("--data x: is odd"), 2, "error: --data x: is odd"),
        (Failure("the tape is full"), 1, "error: the tape is full"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"), 1, f"error: {os.strerror(errno.ENOSPC)}: /a/b"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. y"), 1, "64 bytes"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 1, "--workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. "), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (Stopped(signal.SIGHUP), 129, "stopped by SIGHUP"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(error, code, words, capsys):
    assert ended("play", raising(error)) == code
    said = capsys.readouterr()
    assert said.out == "" and words in said.err and said.err.count("\n") == bool(words)


def test_a_folder_of_a_run_that_vanished_is_said_to_be_gone(tmp_path, monkeypatch):
    from fastssl._ending import PLACE, foreseen

    inside, outside = (FileNotFoundError(2, "x", str(folder / "csv" / "a.csv")) for folder in (tmp_path, tmp_path.parent))
    monkeypatch.setattr(PLACE, "folder", tmp_path)
    assert "a.csv is gone: the run's folder was removed" in foreseen(inside) and foreseen(outside) is None


def test_out_of_memory_names_options_that_the_command_has(capsys):
    assert ended("bench", raising(MemoryError())) == ended("train", raising(MemoryError())) == 1
    bench, train = capsys.readouterr().err.splitlines()
    assert "--shapes" in bench and "--batch-size" not in bench and "--batch-size" in train


@pytest.mark.parametrize(
    "folder, debug, kept_in", [("run", False, "run"), (None, True, "."), ("no folder", False, "."), (None, False, None)]
)
def test_an_unforeseen_error_keeps_its_traceback(folder, debug, kept_in, tmp_path, capsys, monkeypatch):
    """In the run's folder, else among the temporary files, else on the screen; never nowhere."""
    (tmp_path / "run").mkdir()

    def work() -> int:
        _ending.PLACE.folder, _ending.PLACE.debug = folder and tmp_path / folder, debug
        raise KeyError("first line\nsecond")

    monkeypatch.setattr(_ending.tempfile, "gettempdir", lambda: str(tmp_path) if kept_in else "/no/such/folder")
    assert ended("play", work) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("fastssl play: error: unexpected KeyError")
    assert ("Traceback" in said) == (debug or kept_in is None)
    if kept_in:
        kept = next((tmp_path / kept_in).glob("*error*.txt"))
        assert str(kept) in said and "in work" in kept.read_text() and "KeyError" in kept.read_text()


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ended("play", lambda: kill_self(signal.SIGHUP) or 0) == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_patient_command_is_asked_twice(monkeypatch):
    """The same signal at once again is the same request; later it no longer waits."""
    seen = []

    def work() -> int:
        STOP.patient = True
        kill_self(signal.SIGTERM)
        kill_self(signal.SIGTERM)
        seen.append(STOP.signum)
        monkeypatch.setattr(_ending, "SAME_REQUEST", 0.0)
        kill_self(signal.SIGTERM)
        seen.append("not reached")
        return 0

    assert ended("play", work) == 143 and seen == [signal.SIGTERM]


def test_a_stop_that_is_swallowed_comes_again(capsys):
    """Python ignores what is raised in ``__del__``."""

    class Deaf:
        def __del__(self):
            kill_self(signal.SIGINT)

    def work() -> int:
        Deaf()
        for _ in range(500):
            time.sleep(0.02)
        return 0

    assert ended("play", work) == 130 and capsys.readouterr().err == "fastssl play: stopped by Ctrl-C\n"


def test_what_goes_wrong_after_a_signal_is_said_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_ending.tempfile, "gettempdir", lambda: str(tmp_path))
    for error, words in ((Failure("the disk is full"), "the disk is full"), (KeyError("x"), "unexpected KeyError")):

        def work(error: Exception = error) -> int:
            STOP.patient = True
            kill_self(signal.SIGTERM)
            raise error

        assert ended("play", work) == 143
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2 and words in said[0] and "stopped by SIGTERM" in said[1]


@pytest.mark.parametrize(
    "before, argv, restarts",
    [
        (["-m", "fastssl"], "/x/fastssl/__main__.py", True),
        (["-u", "-X", "dev", "-m", "fastssl"], "/x/fastssl/__main__.py", True),
        (["/x/bin/fastssl"], "/x/bin/fastssl", True),
        (["driver.py"], "/x/fastssl/__main__.py", False),  # runpy.run_module
        (["driver.py"], "driver.py", False),
        (["-c", "import fastssl"], "-c", False),
        (["-m", "pdb", "-m", "fastssl"], "/x/fastssl/__main__.py", False),
        (["/x/bin/coverage", "run", "-m", "fastssl"], "/x/fastssl/__main__.py", False),
    ],
)
def test_only_our_own_command_starts_itself_again(before, argv, restarts, monkeypatch):
    """Once, and with the words that it was started with; a program that runs the command inside itself is not begun again."""
    started = []

    def execve(path, words, environment) -> None:
        started.append((path, words, environment["OMP_WAIT_POLICY"]))
        for name in ("OMP_WAIT_POLICY", _ending.RESTARTED):
            monkeypatch.setenv(name, environment[name])

    given = ["train", "simclr", "--epochs", "3"]
    for name in ("OMP_WAIT_POLICY", _ending.RESTARTED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_ending.os, "execve", execve)
    monkeypatch.setattr(_ending.signal, "pthread_sigmask", lambda how, signals: None)
    monkeypatch.setattr(sys, "orig_argv", ["python3", *before, *given])
    monkeypatch.setattr(sys, "argv", [argv, *given])
    _ending.patient_restart()
    assert started == ([(sys.executable, ["python3", *before, *given], "passive")] if restarts else [])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # as a sitecustomize may do
    _ending.patient_restart()
    assert len(started) == restarts


@pytest.mark.parametrize(
    "environment, first",
    [({}, True), ({"RANK": "0", "LOCAL_RANK": "0"}, True), ({"RANK": "8", "LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "1"}, False)]
    + [({"NODE_RANK": "1"}, False), ({"SLURM_PROCID": "0"}, True), ({"SLURM_PROCID": "3"}, False)],
)
def test_the_first_of_several_processes(environment, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _ending.first_process() == first


def test_threads_and_children_print_no_traceback(capsys):
    def fill() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work() -> int:
        thread = threading.Thread(target=fill)
        thread.start()
        thread.join()
        child = os.fork()
        if child == 0:
            kill_self(signal.SIGTERM)
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert ended("play", work) == 7 and capsys.readouterr().err == ""


def broken_pipe(monkeypatch):
    """Standard output is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", buffering=1))


def test_what_only_prints_ends_quietly_where_nobody_reads(monkeypatch, capsys):
    for arguments in (["info"], ["--version"]):
        broken_pipe(monkeypatch)
        assert main(arguments) == 141
        sys.stdout.close()
    assert capsys.readouterr().err == ""


@needs_train
def test_training_goes_on_where_nobody_reads(monkeypatch, tmp_path, capsys):
    broken_pipe(monkeypatch)
    assert main(["train", "simclr", *TINY, "--epochs", "1", "--batch-size", "700", "--out", str(tmp_path)]) == 0
    sys.stdout.close()
    assert (tmp_path / "last.ckpt").exists() and (tmp_path / "curves.png").exists() and capsys.readouterr().err == ""


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 42 on elsewhere (since noon)"); file.flush()
print("locked", flush=True)
sys.stdin.read()
"""


@needs_train
def test_two_runs_into_one_folder(tmp_path, capsys):
    """The second is refused and moves nothing; a lock whose process was killed, or that is a mere file, is in nobody's way."""
    from fastssl.train.rundir import LOCK, claimed

    (tmp_path / "last.ckpt").write_bytes(b"weights")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    try:
        for more in ([], ["--resume"]):
            assert main(["train", "simclr", *TINY, "--out", str(tmp_path), *more]) == 2
            said = capsys.readouterr().err
            assert "process 42 on elsewhere (since noon) is training there" in said and said.count("\n") == 1
        assert (tmp_path / "last.ckpt").read_bytes() == b"weights" and not (tmp_path / "earlier-1").exists()
    finally:
        other.kill()
        other.communicate()
    assert "process 42" in (tmp_path / LOCK).read_text()
    with claimed(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


@needs_train
def test_a_file_system_without_locks_is_warned_of(tmp_path, capsys, monkeypatch):
    from fastssl.train import rundir

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(rundir.fcntl, "lockf", lockf)
    with rundir.claimed(tmp_path / "new" / "run"):
        assert "cannot be locked" in capsys.readouterr().err


@needs_train
@pytest.mark.parametrize("place", ["/dev/null/run", "/proc/run", "file", "file/run"])
def test_a_place_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = place if place.startswith("/") else str(tmp_path / place)
    if place == "/proc/run" and not Path("/proc/self").exists():
        pytest.skip("no /proc")
    for more in ([], ["--resume"]):
        assert main(["train", "simclr", *TINY, "--out", out, *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"--out {out}:" in said
    assert (tmp_path / "file").read_text() == "mine"
