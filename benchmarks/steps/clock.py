"""Where the time and the memory of one training step go: the step says which part it is in, forward and backward.

A part may come several times. On a GPU each change of part records an event. The host starts ``AHEAD_CYCLES`` ahead of the device,
as in the middle of a training: launches then hide behind earlier kernels, and the host's time shows only where the device waits
for it. Memory is read in steps of their own (``begin(memory=True)``), because reading the counters costs the host time. Imports
nothing of ``benchmarks``.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

#: Clock cycles for which the device sleeps before a step, about 50 ms.
AHEAD_CYCLES = 100_000_000


@dataclass
class _Segment:
    part: str
    run: int  # the segments of one run share the level of memory at its start
    at: torch.cuda.Event | float
    level: int = 0
    peak: int = 0


@dataclass(frozen=True)
class Reading:
    """Of one step and its parts: milliseconds, and MB (1e6 bytes) by which memory rose at most, where it was read.

    The rise of the step is counted from its start; that of a part from the start of the run of the part in which it is largest.
    """

    ms: float
    parts_ms: dict[str, float]
    peak_mb: float | None
    parts_peak_mb: dict[str, float]


class Clock:
    """Measures a step: ``begin()``, then the step, which calls ``switch``, ``aside`` and ``border``, then ``finish()``."""

    def __init__(self, device: str):
        self.device = device
        self.begin()

    def begin(self, memory: bool = False) -> None:
        self._memory = memory and self.device == "cuda"
        self._segments: list[_Segment] = []
        self._runs = 0
        if self.device == "cuda":
            torch.cuda.synchronize()
            if not memory:
                torch.cuda._sleep(AHEAD_CYCLES)

    def switch(self, part: str) -> None:
        """Says that the step is in ``part`` from here on; a new run of that part begins."""
        self._runs += 1
        self._add(part, self._runs)

    @contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """A context for ``part`` inside the run of another part, which goes on afterwards."""
        outer = self._segments[-1]
        self.switch(part)
        yield
        self._add(outer.part, outer.run)

    def border(self, x: Tensor, before: str, after: str) -> None:
        """Says that ``before`` has made x, of any shape, and that ``after`` begins; in the backward ``after`` comes first."""
        self.switch(after)
        if x.requires_grad:
            x.register_hook(lambda _: self.switch(before))

    def finish(self) -> Reading:
        self.switch("")
        if self.device == "cuda":
            torch.cuda.synchronize()
        parts: dict[str, float] = {}
        for segment, following in zip(self._segments, self._segments[1:], strict=False):
            parts[segment.part] = parts.get(segment.part, 0.0) + _ms(segment.at, following.at)
        whole = _ms(self._segments[0].at, self._segments[-1].at)
        return Reading(whole, parts, *(self._rises() if self._memory else (None, {})))

    def _add(self, part: str, run: int) -> None:
        segment = _Segment(part, run, self._now())
        if self._memory:
            if self._segments:
                self._segments[-1].peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            segment.level = segment.peak = torch.cuda.memory_allocated()
        self._segments.append(segment)

    def _now(self) -> torch.cuda.Event | float:
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _rises(self) -> tuple[float, dict[str, float]]:
        segments = self._segments[:-1]
        levels: dict[int, int] = {}
        parts: dict[str, float] = {}
        for segment in segments:
            level = levels.setdefault(segment.run, segment.level)
            parts[segment.part] = max(parts.get(segment.part, 0.0), (segment.peak - level) / 1e6)
        return (max(s.peak for s in segments) - segments[0].level) / 1e6, parts


def _ms(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)
