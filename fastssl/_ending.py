"""How a command ends: done, on a signal, with a closed output, or on an error. It always ends with a line and an exit code.

0              the command is done
1              the machine refused something, or there is an error in fastssl
2              an option or an input is wrong
129, 130, 143  the command was stopped by SIGHUP, by Ctrl-C, by SIGTERM
141            nobody reads the output of a command that only prints
"""

import errno
import io
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from ._aside import replace_text
from ._lines import broken, columns_of

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
RESTARTED = "FASTSSL_RESTARTED"
SAME_REQUEST = 0.5  # seconds in which a signal that comes again is the same request: timeout(1) and some wrappers send it twice
LOST = re.compile(
    r"gloo/transport|gloo/.*[Tt]imed? ?out|NCCL (communicator|error|operation)"
)  # how torch.distributed tells a lost process
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


class UsageError(Exception):
    """An option or an input is wrong. The text is the one line that the person reads, and it names the option."""


class Failure(Exception):
    """The machine refused something, such as room on a full disk. The text is the one line that the person reads."""


class Stopped(BaseException):
    """A signal asked the command to end. ``saved`` says what was saved for it, where something was."""

    def __init__(self, signum: int, saved: str = ""):
        super().__init__(signum)
        self.signum, self.saved = signum, saved


class Stop:
    """The request of a signal. It raises ``Stopped`` at once, or, where ``patient``, waits until somebody calls ``check``.

    Training is patient: it looks after each step, when its state is whole and can be saved. A signal that comes again later than
    ``SAME_REQUEST`` is not made to wait. Forked children leave the signals to their parent.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets an earlier request: from now on the signals are this process's."""
        self.signum: int | None = None
        self.patient = False
        self.process, self.time = os.getpid(), 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return
        now, first = time.monotonic(), self.signum is None
        if not first and now - self.time < SAME_REQUEST:
            return
        self.time, self.signum = now, self.signum or signum
        if self.patient and first:
            return
        raise Stopped(self.signum)

    def check(self, saved: str = "") -> None:
        """Raises ``Stopped`` where a signal came."""
        if self.signum is not None:
            raise Stopped(self.signum, saved)


def first_process() -> bool:
    """Whether this is the process of a run that writes and prints: the only one, or the first of several."""
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def process_name() -> str:
    """``process 3 on HOST: `` in a process of a run that is not its first, else nothing: a line that several processes may say."""
    if first_process():
        return ""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return f"process {next(os.environ[name] for name in names if name in os.environ)} on {socket.gethostname()}: "


class Place:
    """Where a run is kept, once that is known, and whether the person asked for tracebacks."""

    folder: Path | None = None
    debug = False


STOP, PLACE = Stop(), Place()


@contextmanager
def signals_heeded() -> Iterator[None]:
    """Inside this context ``STOP`` answers the signals. Those that this process was told to ignore (nohup) stay ignored."""
    STOP.reset()
    before = {}
    try:
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                before[signum] = signal.signal(signum, STOP)
    except ValueError:  # not the main thread: the program around it deals with signals
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


def own_command() -> bool:
    """Whether this process was started as ``fastssl ...`` or ``python -m fastssl ...``.

    A program that runs the command inside itself, by ``runpy``, a debugger or a profiler, would begin once more.
    """
    words = sys.orig_argv[1:]
    while words and words[0].startswith("-") and words[0] != "-m":
        words = words[2 if words[0] in ("-X", "-W") else 1 :]
    if words[:2] == ["-m", "fastssl"]:
        return words[2:] == sys.argv[1:]
    return bool(words) and Path(words[0]).name == "fastssl" and words == sys.argv


def patient_restart() -> None:
    """Starts this process again with ``OMP_WAIT_POLICY=passive``, which OpenMP reads only when torch loads it.

    By default idle OpenMP threads spin. On cores that other work wants too, a training step then took six times as long. Signals
    that come while torch is imported once more are kept until ``ended``. ``RESTARTED`` in the environment says that this was done:
    a process starts itself again once at most, whatever becomes of the other variable.
    """
    if os.name == "posix" and not {"OMP_WAIT_POLICY", RESTARTED} & os.environ.keys() and own_command():
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_WAIT_POLICY": "passive", RESTARTED: "1"})


def visible(text: str) -> str:
    """``text`` on one line. What cannot be printed, such as a line feed in a name, becomes an escape like ``\\n``."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(text: str = "", *, error: bool = False) -> None:
    """Prints a line at once; on a terminal, one that is wider is broken between words.

    Where a line cannot be written (a closed pipe, a full disk), it and all later lines are dropped: what a run computes is worth
    more than its log.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        if not error and (width := columns_of(stream)) is not None:  # errors hold commands to be copied
            text = "\n".join(broken(line, width) for line in text.split("\n"))
        print(text, file=stream, flush=True)
    except OSError:
        drop(stream)


def drop(stream: TextIO) -> None:
    """From now on, what is written to ``stream`` goes nowhere."""
    try:
        number = stream.fileno()
    except OSError:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, NumPy or the system, by torch (RuntimeError), in a decoder of Pillow (OSError)."""
    if isinstance(error, OSError) and error.errno is not None:  # its text holds the name of a file
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error)


def machines_own(error: BaseException) -> OSError | None:
    """The refusal of the machine (a full disk, no right to write) behind an error: the error itself, one that it came from, or one
    whose words a library has put into its own. None where there is none."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and each.errno in REFUSED:
            return each
        each = each.__cause__ or each.__context__
    text = str(error)
    return next((OSError(code, os.strerror(code)) for code in REFUSED if os.strerror(code) in text), None)


def foreseen(error: Exception, command: str = "train") -> str | None:
    """The line about an error that correct code can meet: no memory, a full disk, a killed worker process. None for others."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if out_of_memory(error):
        read = re.findall(r"out of memory while reading .*", text)  # of a worker with its traceback; the text itself comes last
        if read:
            return f"{read[-1]}; fewer --workers, or smaller pictures, need less"
        wanted = re.search(r"tried to allocate ([\d.]+ \w+)", text)
        size = f" ({wanted[1]} were asked for)" if wanted else ""
        less = "smaller --shapes need" if command == "bench" else "a smaller --batch-size, --image-size, --backbone or head needs"
        return f"out of memory{size}; {less} less"
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f" (the run is in {PLACE.folder})" if PLACE.folder else ""
        return f"{error.strerror}" + (f": {error.filename}" if error.filename else where)
    if isinstance(error, FileNotFoundError) and PLACE.folder and str(error.filename).startswith(f"{PLACE.folder}{os.sep}"):
        return f"{error.filename} is gone: the run's folder was removed, or changed, while it was written to"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename2 or error.filename} is a directory, and a file was to be written or read there; move it away"
    if "DataLoader worker" in text and "killed by signal" in text:
        return f"--workers: a process that reads the data was killed; fewer --workers need less memory ({first})"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "RanksError" in kinds:  # fastssl.distributed's, which names the cause itself
        return text.replace("\n", " ")
    if LOST.search(text) or "DistError" in kinds:
        return f"another process of the run ended, or does not answer any more; its own line says why ({first})"
    return None


@contextmanager
def quiet_hooks() -> Iterator[None]:
    """Inside this context Python itself prints no traceback of an error that is told in another way.

    A thread that meets a full disk is silent, because the thread's owner raises the error too. Where nothing can be raised (in a
    callback of fork, in ``__del__``), a stop is asked for again a little later, and what follows from a stop is not shown.
    """
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook

    def in_thread(found: threading.ExceptHookArgs) -> None:
        if not isinstance(found.exc_value, OSError) or foreseen(found.exc_value) is None:
            thread_hook(found)

    def unraisable(found: Any) -> None:
        if isinstance(found.exc_value, Stopped):
            STOP.signum = None
            threading.Timer(0.1, again, (found.exc_value.signum,)).start()
        elif STOP.signum is None:
            unraisable_hook(found)

    def again(signum: int) -> None:
        if sys.unraisablehook is unraisable:
            os.kill(os.getpid(), signum)

    threading.excepthook, sys.unraisablehook = in_thread, unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook


def traceback_kept(error: BaseException, command: str = "train", *, elsewhere: bool = True) -> Path | None:
    """Writes the traceback into the run's folder, or that of temporary files (``elsewhere``) -> its path.

    The name is ``error.txt`` for a training, whose end it tells, and has the command's name for another one, as in
    ``error-eval.txt``. A link there is replaced.
    """
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {shlex.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    folder = PLACE.folder
    name = "error.txt" if command == "train" else f"error-{command}.txt"
    places = [folder / name] if folder is not None and folder.is_dir() else []
    places += [Path(tempfile.gettempdir(), f"fastssl-error-{os.getpid()}.txt")] if elsewhere else []
    for path in places:
        try:
            replace_text(path, text)
        except OSError:
            continue
        return path
    return None


def failed(command: str, error: Exception) -> int:
    """Says in one line what went wrong, and where the traceback of an error that nobody foresaw was written."""
    words = str(error) if isinstance(error, Failure) else foreseen(error, command)
    if PLACE.debug:
        say("".join(traceback.format_exception(error)).rstrip(), error=True)
    if words is None:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        kept = traceback_kept(error, command)
        if kept is None and not PLACE.debug:
            say("".join(traceback.format_exception(error)).rstrip(), error=True)
        where = f"; the traceback is in {kept}" if kept else ""
        words = f"unexpected {type(error).__name__}: {first}{where}"
    say(f"fastssl {command}: error: {process_name()}{words}", error=True)
    return 1


def stopped(command: str, error: BaseException, resume: bool) -> int:
    """Says what stopped the command and what is saved. An error that came besides is said before.

    Returns:
        The exit code: 128 plus the number of the signal.
    """
    if isinstance(error, UsageError):
        say(f"fastssl {command}: error: {error}", error=True)
    elif isinstance(error, Exception) and "killed by signal: Terminated" not in str(error):
        failed(command, error)
    signum = STOP.signum
    if signum is None:
        signum = error.signum if isinstance(error, Stopped) else signal.SIGINT
    by = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    saved = getattr(error, "saved", "")
    last = PLACE.folder / "last.ckpt" if PLACE.folder else None
    if resume and last is not None and last.exists():
        end = f"; {saved or last} is kept, and the same command with --resume goes on from there"
    else:
        end = "; nothing was saved yet" if resume else ""
    if first_process():
        say(f"fastssl {command}: stopped by {by}{end}", error=True)
    return 128 + signum


def outcome(command: str, error: BaseException, resume: bool) -> int:
    """The line and the exit code of a command that raised ``error``."""
    if isinstance(error, RuntimeError) and "killed by signal: Terminated" in str(error):  # a worker got the signal before us
        STOP.signum = STOP.signum or signal.SIGTERM
    if isinstance(error, (Stopped, KeyboardInterrupt)) or STOP.signum is not None:  # lightning makes SystemExit of SIGTERM
        return stopped(command, error, resume)
    if isinstance(error, UsageError):
        say(f"fastssl {command}: error: {process_name()}{visible(str(error))}", error=True)
        return 2
    if isinstance(error, BrokenPipeError):
        drop(sys.stdout)
        return 128 + 13
    if not isinstance(error, Exception):  # SystemExit, after --help
        raise error
    return failed(command, error)


def ended(command: str, work: Callable[[], int], *, resume: bool = False) -> int:
    """Runs a command and gives its exit code, whatever happens in it.

    Args:
        command: the name of the command, for the line about an error.
        work: the command itself, which returns its exit code.
        resume: whether ``--resume`` can go on with what the command has saved.
    """
    PLACE.folder, PLACE.debug = None, False
    with signals_heeded(), quiet_hooks():
        try:
            if hasattr(signal, "pthread_sigmask") and os.name == "posix":
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `patient_restart` held them back
            try:
                return work()
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BaseException as error:
            STOP.process = 0  # a signal that comes now would only break the line
            return outcome(command, error, resume)


def lines_at_once() -> None:
    """Makes standard output show each line at once, also in a pipe, and print any name of a file.

    Where standard output was closed from the start, the null device takes its place. Otherwise the next file that is opened, such
    as a checkpoint, would get its number and with it what is printed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
