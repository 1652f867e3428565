"""Time: implementations take turns, so a machine that slows down slows all of them; medians and the 20th and 80th percentile.

A turn is one settling call where calls are short, then the timed calls; garbage collection is off. On a GPU the timed
calls are enclosed by events and repeated back to back for at least ``GPU_TURN_MS``.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastssl.graphs import record

SHORT_MS = 50.0
GPU_TURN_MS = 2.0
MAX_TURNS = 200
#: Elements of the matrix product's output on a CPU: larger products are timed on a slab of rows and scaled.
_PRODUCT_ELEMENTS = 1 << 26
#: Bytes of the buffer whose passes give the memory rate of a CPU: larger amounts are scaled.
_PASS_BYTES = 1 << 28
#: float32 numbers of a copy out of L2 into L2: 12.6 MB each way.
L2_ELEMENTS = 3 << 20


@dataclass(frozen=True)
class Timing:
    """ms of one call: median and percentiles over ``rounds`` turns."""

    ms: float
    p20: float
    p80: float
    rounds: int


def summarize(samples: list[float]) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], len(ordered))


def plan_turns(turn_s: float, share_s: float, least: int) -> int:
    """Turns of one implementation: what its share of the budget holds, at least ``least``; down to 3 where those cost 10 shares."""
    turns = int(share_s / max(turn_s, 1e-9))
    if turns >= least:
        return min(turns, MAX_TURNS)
    return least if least * turn_s <= 10 * share_s else min(least, max(3, int(10 * share_s / turn_s)))


def plays(turn: int, turns: int, rounds: int) -> bool:
    """Whether an implementation with ``turns`` of the ``rounds`` plays in round ``turn``: its turns are spread evenly."""
    return (turn + 1) * turns // rounds > turn * turns // rounds


def once_ms(call: Callable[[], object], device: str, repeats: int = 1) -> float:
    """ms of one call, the mean of ``repeats`` back to back."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats


def take_turns(calls: dict[str, Callable[[], object]], device: str, budget_s: float, least: int) -> dict[str, Timing]:
    """Times every call in turns; calls are warm already. Each gets an equal share of the budget, so slow ones sit rounds out."""
    estimate = {name: once_ms(call, device) for name, call in calls.items()}
    estimate |= {name: min(ms, once_ms(calls[name], device)) for name, ms in estimate.items() if ms < 1e3}
    repeats = {name: max(1, round(GPU_TURN_MS / ms)) if device == "cuda" else 1 for name, ms in estimate.items()}
    settle = {name: ms < SHORT_MS for name, ms in estimate.items()}
    share_s = budget_s / max(1, len(calls))
    turns = {name: plan_turns(ms * (repeats[name] + settle[name]) / 1e3, share_s, least) for name, ms in estimate.items()}
    rounds = max(turns.values(), default=0)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            playing = [name for name in calls if plays(turn, turns[name], rounds)]
            for name in playing if turn % 2 == 0 else reversed(playing):
                if settle[name]:
                    calls[name]()
                samples[name].append(once_ms(calls[name], device, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(times) for name, times in samples.items()}


def product_call(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """(call, factor): factor times the call's ms is one matrix product (N, D) by (D, M) into a ready-made output on the CPU."""
    n, m, d = shape
    slab = min(n, max(1, _PRODUCT_ELEMENTS // m))
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(m, d, generator=generator).to(dtype)
    x = y[:slab] if n == m else torch.randn(slab, d, generator=generator).to(dtype)
    out = torch.empty(slab, m, dtype=dtype)
    call = lambda: torch.mm(x, y.T, out=out)  # noqa: E731
    call()
    return call, n / slab


def memory_call(moved: float) -> tuple[Callable[[], object], float]:
    """(call, factor): factor times the call's ms is the time in which a CPU reads and writes ``moved`` bytes in all.

    One pass in place over a buffer, as an update does: a copy would first fetch the lines that it overwrites, uncounted.
    """
    buffer = torch.ones(max(1, round(min(moved / 2, _PASS_BYTES) / 4)), dtype=torch.float32)
    call = lambda: buffer.neg_()  # noqa: E731
    call()
    return call, moved / (2 * buffer.nbytes)


def gpu_memory_rate(size: int = 1 << 29, rounds: int = 9, repeats: int = 3) -> float:
    """Bytes/s, read and written, of a copy between two buffers of ``size`` float32 numbers."""
    source = torch.randn(size, device="cuda")
    out = torch.empty_like(source)
    call = lambda: out.copy_(source)  # noqa: E731
    call()
    ms = statistics.median(once_ms(call, "cuda", repeats) for _ in range(rounds))
    return 2.0 * source.nbytes / (ms * 1e-3)


def host_ms(call: Callable[[], object], synchronize: Callable[[], object], rounds: int = 15) -> float:
    """ms until the call returns to the host, which does not wait for the device; the device is idle before each."""
    samples = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    synchronize()
    return statistics.median(samples)


def gpu_launches(call: Callable[[], object]) -> tuple[int | None, str]:
    """(kernels, copies and fills that one call starts on the GPU, "") or (None, reason)."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            call()
            torch.cuda.synchronize()
        events = [e for e in found.events() if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    except (RuntimeError, AssertionError) as error:  # no profiler in this torch, or none that works here
        return None, str(error).partition("\n")[0][:120]
    return (len(events), "") if events else (None, "the profiler saw nothing on the device")


def gpu_product_rate(dtype: torch.dtype, size: int = 8192, rounds: int = 9) -> float:
    """FLOP/s of a large square matrix product on random data; the ceiling that GPU results are shares of."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    call = lambda: torch.mm(a, b, out=out)  # noqa: E731
    for _ in range(3):
        call()
    ms = statistics.median(once_ms(call, "cuda", 3) for _ in range(rounds))
    return 2.0 * size**3 / (ms * 1e-3)


def capture_graph(call: Callable[[], object]) -> tuple[Callable[[], object] | None, str]:
    """(replay, "") of a CUDA graph of the call, or (None, reason) where it cannot be captured."""
    try:
        graph, _ = record(call, lambda: [call() for _ in range(3)])
        graph.replay()
        torch.cuda.synchronize()
    except Exception as error:  # any library's code runs here; the reason is the result
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return graph.replay, ""
