"""Processes with limits, and what a GPU run leaves behind.

Every step is a process group of its own with a limit. Its output goes to a log file; the end of it is printed, and joins the
summary. What a stage makes is first written to a scratch folder, which is packed into DIR after the stage, so that DIR is complete
whenever the run is cut off. Imports ``plan``.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.plan import PACK_S, STOP_S

ROOT = Path(__file__).resolve().parents[2]
#: Of a longer log, only the two ends are packed.
LOG_BYTES = 2_000_000
#: The archive stays smaller than this: a machine that is lent may hand back no larger file.
ARCHIVE_BYTES = 15 << 20
#: Characters of a step's output that are printed.
_TAIL = 1500
#: Seconds between the request to end (SIGTERM) and the order (SIGKILL), and until a process that the driver holds is given up.
_GRACE_S, _KILL_S = 3.0, 4.0
OK, NO_TIME = "ok", "no time left"


@dataclass
class Step:
    """What became of a process: ``state`` is "ok", "skipped: reason", "exit 1", "stopped after 60 s", "no time left" or an error.

    ``log``: the file with its output.
    """

    name: str
    state: str
    seconds: float = 0.0
    note: str = ""
    log: Path | None = None

    @property
    def ok(self) -> bool:
        return self.state == OK

    @property
    def bad(self) -> bool:
        return not self.ok and not self.state.startswith("skipped")

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log and self.log.exists() else ""


def stop(process: subprocess.Popen, grace_s: float = _GRACE_S) -> None:
    """Ends a process and all that it started, where they still run."""
    stop_all([process], grace_s)


def stop_all(processes: list[subprocess.Popen], grace_s: float = _GRACE_S) -> None:
    """Ends many processes at once, in no more time than one takes."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_S)):
        if not wait_s:
            continue
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        until = time.monotonic() + wait_s
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))


def this_gpu() -> tuple[str, str] | None:
    """(name, compute capability) of the GPU that is here, asked without a context on it; None where there is none."""
    try:
        words = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        asked = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"(.+), (\d+\.\d)$", asked.stdout.strip().split("\n")[0])
    return (found[1], found[2]) if found else None


def read_lines(path: Path) -> list[dict]:
    """The lines of JSON that another process writes to a file: complete ones only; none where the file is absent."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def shortened(text: bytes, most: int = LOG_BYTES) -> bytes:
    """The two ends of a long text."""
    return text if len(text) <= most else text[: most // 2] + b"\n...\n" + text[-most // 2 :]


@dataclass
class Run:
    """The state of one command: where it writes, how much time is left, what each step did.

    ``short``: the command is a call of the plan, whose stages leave out what fifteen minutes have no room for. ``stage_until``: the
    time at which the present stage must be over. ``halted``: why the stages that follow would be pointless. ``dropped``: what was
    not done, and why. ``todo``: the stages that have not ended.
    """

    out: Path
    device: str = "cuda"
    quick: bool = False
    peers: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    total_s: float = 520.0
    short: bool = False
    started: float = field(default_factory=lambda: time.monotonic())
    stage_until: float = float("inf")
    halted: str = ""
    dropped: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    site: list[str] = field(default_factory=list)
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fastssl-gpu-")))
    live: set = field(default_factory=set)
    abandoned: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    packing: threading.Lock = field(default_factory=threading.Lock)

    def folder(self, name: str) -> Path:
        """A folder of the packed results."""
        path = self.scratch / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def site_folder(self, name: str) -> Path:
        """A folder for an installed wheel, beside the packed results."""
        path = self.scratch.with_suffix(".site") / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def results(self) -> Path:
        return self.scratch / "results"

    def left_s(self) -> float:
        """Seconds that are left for stages; those for packing are kept back."""
        return self.total_s - PACK_S - (time.monotonic() - self.started)

    def stage_s(self) -> float:
        """Seconds that a process of the present stage may take, so that there is time to stop it."""
        return max(0.0, min(self.stage_until - time.monotonic(), self.left_s()) - STOP_S)

    def drop(self, what: str, why: str) -> None:
        with self.lock:
            self.dropped.append(f"{what}: {why}")
        self.say(f"=== dropped: {what}: {why}")

    def say(self, text: str) -> None:
        with self.lock:
            print(text, flush=True)
            with (self.out / "log.txt").open("a") as log:
                log.write(text + "\n")

    def record(self, step: Step) -> Step:
        with self.lock:
            self.steps.append(step)
        self.say(f"=== {step.name}: {step.state}, {step.seconds:.1f} s, {self.left_s():.0f} s left")
        return step

    def skip(self, name: str, reason: str) -> Step:
        return self.record(Step(name, f"skipped: {reason}"))

    def report(self, name: str, text: str) -> None:
        """A part of the summary, kept with the results."""
        (self.folder("reports") / f"{name}.md").write_text(text.strip() + "\n")

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *self.site, *filter(None, [os.environ.get("PYTHONPATH")])])
        return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | (extra or {})

    def start(self, name: str, command: list[str], env: dict[str, str] | None = None) -> tuple[subprocess.Popen, Path]:
        """Starts a process group; returns it, for ``end``, and its log file. Raises OSError where it cannot start."""
        if self.abandoned:
            raise OSError("the run is being ended")
        path = self.folder("logs") / (re.sub(r"[^A-Za-z0-9.]+", "_", name)[:80] + ".txt")
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(env),
                process_group=0,  # not a session: what ends this command's session ends them too
            )
        self.live.add(process)
        if self.abandoned:  # the run was ended before the process was among the live ones
            stop(process, 0.0)
        self.say(f"=== {name}: {' '.join(part if len(part) < 200 else '...' for part in command)}")
        return process, path

    def end(self, process: subprocess.Popen) -> None:
        stop(process)
        self.live.discard(process)

    def step(self, name: str, command: list[str], limit_s: float, env: dict[str, str] | None = None) -> Step:
        """Runs a process within its limit and the time of the stage."""
        limit_s = min(limit_s, self.stage_s())
        if limit_s < 1:
            return self.record(Step(name, NO_TIME))
        begin = time.monotonic()
        try:
            process, log = self.start(name, command, env)
        except OSError as error:
            return self.record(Step(name, f"did not start: {error}"))
        try:
            code = process.wait(limit_s)
            state = OK if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            state = f"stopped after {limit_s:.0f} s"
        finally:
            self.end(process)
        step = Step(name, state, time.monotonic() - begin, log=log)
        self.say(step.output()[-_TAIL:].rstrip())
        return self.record(step)

    def together(self, jobs: Iterable[tuple[str, list[str]]], limit_s: float, at_once: int, env=None) -> list[Step]:
        """Runs steps side by side, ``at_once`` of them at a time; ``limit_s`` is for all of them together."""
        until = time.monotonic() + limit_s
        with ThreadPoolExecutor(at_once) as pool:
            steps = [pool.submit(lambda job: self.step(*job, until - time.monotonic(), env), job) for job in jobs]
            # Python runs a signal's handler in the main thread only, and one that comes just before a wait without a limit starts
            # is not seen before that wait ends.
            while wait(steps, timeout=0.2).not_done:
                pass
            return [step.result() for step in steps]

    def kill(self) -> None:
        """Orders every process to end, from a handler of signals: it takes no lock and waits for nothing. None is started later."""
        self.abandoned = True
        for process in list(self.live):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """Ends every process that still runs; none is started afterwards."""
        self.kill()
        stop_all(list(self.live), 0.0)

    def remove(self) -> None:
        for folder in (self.scratch, self.scratch.with_suffix(".site")):
            shutil.rmtree(folder, ignore_errors=True)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file in DIR so that the old one or the new one is complete, whenever this process is killed."""
        with self.packing:
            fresh = self.out / f"{name}.part"
            fresh.write_bytes(content)
            fresh.replace(self.out / name)

    def keep(self, path: Path) -> None:
        """Copies a file to DIR, beside the archive."""
        if path.exists():
            self.write(path.name, path.read_bytes())

    def pack(self) -> None:
        """Packs the scratch folder into results.tar.gz: some can take only a few files away. Processes may be writing there."""
        packed = b""
        for most in (LOG_BYTES, LOG_BYTES // 20, LOG_BYTES // 200):
            packed = self._packed(most)
            if len(packed) <= ARCHIVE_BYTES:
                break
        self.write("results.tar.gz", packed)

    def _packed(self, most: int) -> bytes:
        """The archive, with at most ``most`` bytes of a log."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path in sorted(path for path in self.scratch.rglob("*") if path.is_file()):
                with suppress(FileNotFoundError):  # its process has just put it into place under its own name
                    info, text = archive.gettarinfo(path, str(path.relative_to(self.scratch))), path.read_bytes()
                    text = shortened(text, most) if path.parent.name == "logs" else text
                    info.size = len(text)
                    archive.addfile(info, io.BytesIO(text))
        return packed.getvalue()

    def unpack(self) -> None:
        """Unpacks what an earlier command left in the same DIR."""
        if (self.out / "results.tar.gz").exists():
            with tarfile.open(self.out / "results.tar.gz") as archive:
                archive.extractall(self.scratch, filter="data")


def python(module: str, *words: str) -> list[str]:
    """The command ``python -m module words``."""
    return [sys.executable, "-m", module, *words]
