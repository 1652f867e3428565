"""What a run says while it works: lines, and a bar on a terminal or else a line every so often."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from fastssl import _ending

try:
    import resource
except ImportError:  # no POSIX
    resource = None  # type: ignore[assignment]

EVERY = 30.0  # seconds between lines where there is no bar
SHORT = 2.0  # seconds; what ends sooner has no bar of its own

T = TypeVar("T")


def terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def say(text: str = "", *, error: bool = False) -> None:
    """Prints a line, above the bar where there is one."""
    with tqdm.external_write_mode(file=sys.stderr if error else sys.stdout):
        _ending.say(text, error=error)


def duration(seconds: float) -> str:
    """A time in seconds for a person, such as "2 h 05 min", "3 min 07 s" or "23 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def peak_bytes(device: torch.device | None = None) -> dict[str, int]:
    """The most bytes that this process has had so far, as "memory", and what torch has taken of a GPU for tensors, "device_memory".

    Processes that read data are not counted. What the system does not tell is left out.
    """
    known = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        known["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device is not None and device.type == "cuda":
        known["device_memory"] = torch.cuda.max_memory_allocated(device)
    return known


def peak_memory(device: torch.device | None = None) -> str:
    """``peak_bytes`` for a person, such as "1.3 GiB"; "" where the system does not tell."""
    names = {"memory": "", "device_memory": "GPU "}
    return ", ".join(f"{names[name]}{count / 2**30:.1f} GiB" for name, count in peak_bytes(device).items())


def speed(samples: int, spent: list[float | None], unit: str) -> str:
    """How many samples a second the last epoch took, such as "1,234 images/s"; "" where its time is not known.

    Args:
        samples: of all processes in the epoch.
        spent: seconds of training up to the end of each epoch, 0 first.
        unit: what the samples are.
    """
    before, after = spent[-2:] if len(spent) > 1 else (None, None)
    if before is None or after is None or after <= before:
        return ""
    rate = samples / (after - before)
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s"


def watched(parts: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Gives each of ``parts``, and shows how many of the ``total`` are done where that takes long. ``what`` names the work."""
    if terminal():
        yield from tqdm(parts, what, total, leave=False, delay=SHORT, dynamic_ncols=True, file=sys.stderr)
        return
    shown = time.monotonic()
    for done, part in enumerate(parts, 1):
        yield part
        if done < total and time.monotonic() - shown >= EVERY:
            shown = time.monotonic()
            say(f"  {what}: {done} of {total} batches")


class Steps:
    """Shows the steps of the whole training, the time that is left, and the loss. Epochs count from 1, as everywhere.

    Args:
        epochs, steps: number of epochs, and of steps in each.
        done: steps of all epochs that were made before.
    """

    def __init__(self, epochs: int, steps: int, done: int):
        self.epochs, self.steps, self.total, self.done = epochs, steps, epochs * steps, done
        self.begun = self.shown = time.monotonic()
        self.before = done
        self.bar = None
        if terminal():
            how = {"initial": done, "unit": "step", "leave": False, "dynamic_ncols": True, "file": sys.stderr}
            self.bar = tqdm(total=self.total, desc=self.name(done), **how)

    def name(self, done: int) -> str:
        return f"epoch {min(self.epochs, done // self.steps + 1):>3}/{self.epochs}"

    def left(self) -> str:
        """The time that the rest takes at the pace so far, evaluations included."""
        pace = (time.monotonic() - self.begun) / max(1, self.done - self.before)
        return duration(pace * (self.total - self.done))

    def rest(self) -> str:
        """What the line of an epoch says of the time that is left, where no bar shows it: "about 3 min 07 s left", or ""."""
        return f"about {self.left()} left" if self.bar is None and self.before < self.done < self.total else ""

    def step(self, loss: Tensor) -> None:
        """Counts one step more. Its loss, a tensor (), is read only when it is shown."""
        name = self.name(self.done)
        self.done += 1
        if self.bar is not None:
            self.bar.set_description(name, refresh=False)
            if self.bar.update():
                self.bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        elif self.done % self.steps == 0:  # the line of the epoch follows
            self.shown = time.monotonic()
        elif time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            step = (self.done - 1) % self.steps + 1
            say(f"{name}  step {step}/{self.steps}  loss {loss.item():.3f}  about {self.left()} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
