"""Where the time and the memory of one training step go: the step says which part it is in, forward and backward.

A part may come several times. On a GPU each change of part records an event; the host starts ``AHEAD_CYCLES`` ahead of the device,
as it is in the middle of a training, so that launches hide behind earlier work and only what the host waits for is seen. Memory
is read in steps of its own (``begin(memory=True)``): the counters cost the host time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

#: Cycles of the device that it sleeps before a step, about 50 ms.
AHEAD_CYCLES = 100_000_000


@dataclass
class _Segment:
    part: str
    run: int  # segments of one run have one level
    at: torch.cuda.Event | float
    level: int = 0
    peak: int = 0


@dataclass(frozen=True)
class Reading:
    """One step: ms in all and of each part; MB (1e6 bytes) by which memory rose at its highest, empty where it was not read.

    The rise of the step is above its start, that of a part above the start of the run in which it is largest.
    """

    ms: float
    parts_ms: dict[str, float]
    peak_mb: float | None
    parts_peak_mb: dict[str, float]


class Clock:
    """``begin()``, then the step with ``switch``, ``aside`` and ``border``, then ``finish()``."""

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
        """From here on the step is in ``part``: a new run of it."""
        self._runs += 1
        self._add(part, self._runs)

    @contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """``part`` inside a run of another, which goes on after it."""
        outer = self._segments[-1]
        self.switch(part)
        yield
        self._add(outer.part, outer.run)

    def border(self, x: Tensor, before: str, after: str) -> None:
        """x, of any shape, is the result of ``before``, and ``after`` takes it; backward the other way round."""
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
