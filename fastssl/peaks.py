"""What this machine can do at best: multiply-adds a second for each dtype, and bytes a second of its memory. Measured when asked.

    registers   multiply-adds that touch no memory: no program on this machine does more
    tile        a matrix product that stays in L2: what a product does that never waits for memory
    memory      a large array read and written in place, as an update does it

A measurement uses all threads of torch, and takes 20 ms for each unit on a quiet machine, up to a second on a busy one.
"""

import time
from dataclasses import dataclass

import torch

from .ops._register import _C

#: Bytes of the array whose passes give the rate of the memory: more than a cache holds.
_ARRAY_BYTES = 1 << 28
#: (dtype, unit) -> the fastest that this process has seen: a peak that was measured beside other work is none.
_seen: dict[tuple[str, str], tuple[float, float]] = {}


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one unit, such as "avx512" or "avx512_bf16". ``tile`` is None where only the registers are measured."""

    dtype: str
    unit: str
    registers: float
    tile: float | None

    @property
    def name(self) -> str:
        return f"{self.dtype} by {self.unit}"


def _units() -> list[tuple[str, str]]:
    return [] if _C is None else _C.peak_units()


def _measure(dtype: str, unit: str) -> Peak:
    assert _C is not None
    now, before = _C.peak_flops(dtype, unit), _seen.get((dtype, unit), (0.0, 0.0))
    registers, tile = _seen[dtype, unit] = max(now[0], before[0]), max(now[1], before[1])
    return Peak(dtype, unit, registers, tile or None)


def peaks() -> list[Peak]:
    """Measures each unit of this CPU that fastssl knows; none without the C++ kernels."""
    return [_measure(*each) for each in _units()]


def peak_of(dtype: torch.dtype) -> Peak | None:
    """Measures the fastest unit for products of tensors of ``dtype``; None where it is not known.

    A 16-bit dtype without a unit of its own is multiplied in float32. The peak of float64 is not known, and none without the C++
    kernels.
    """
    wanted = str(dtype).partition(".")[2]
    units = _units() if wanted in ("float32", "bfloat16", "float16") else []
    fitting = [each for each in units if each[0] == wanted] or [each for each in units if each[0] == "float32"]
    return max((_measure(*each) for each in fitting), key=lambda peak: peak.registers, default=None)


def memory_rate(runs: int = 5) -> float:
    """Bytes a second that all threads read and write together; the fastest of ``runs`` passes over a large array."""
    array = torch.ones(_ARRAY_BYTES // 4)
    best = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        array.neg_()
        best = max(best, 2.0 * array.nbytes / (time.perf_counter() - start))
    return best
