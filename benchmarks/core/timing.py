"""How long a call takes, beside others: interleaved rounds, medians, the 20th and the 80th percentile.

All implementations of a workload are timed in one process, one after the other, round by round, so that a machine that slows down
slows all of them. A sample is one untimed call where calls are short, then the timed calls; garbage collection is off. On a GPU,
events enclose the timed calls, which repeat back to back for at least ``GPU_SAMPLE_MS``.

This file also measures the rates that limits are made from (matrix product, memory), launches, and replays of CUDA graphs. From
fastssl it imports ``graphs``, and nothing of ``benchmarks``.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastssl.graphs import record

SHORT_MS = 50.0
GPU_SAMPLE_MS = 2.0
MAX_ROUNDS = 200
#: Elements of the matrix product's output on a CPU: larger products are timed on a slab of rows and scaled.
_PRODUCT_ELEMENTS = 1 << 26
#: Bytes of the buffer whose passes give the memory rate of a CPU: larger amounts are scaled.
_PASS_BYTES = 1 << 28
#: float32 numbers of a copy out of L2 into L2: 12.6 MB each way.
L2_ELEMENTS = 3 << 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and percentiles of its ``rounds`` samples."""

    ms: float
    p20: float
    p80: float
    rounds: int


def summarize(samples: list[float]) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], len(ordered))


def plan_samples(sample_s: float, share_s: float, least: int) -> int:
    """How often one implementation is timed, where a sample takes ``sample_s`` and its share of the budget is ``share_s``.

    It is timed as often as the share allows, at least ``least`` times; where that would cost ten shares, 3 times at least.
    """
    samples = int(share_s / max(sample_s, 1e-9))
    if samples >= least:
        return min(samples, MAX_ROUNDS)
    return least if least * sample_s <= 10 * share_s else min(least, max(3, int(10 * share_s / sample_s)))


def takes_part(index: int, samples: int, rounds: int) -> bool:
    """Whether an implementation that is timed ``samples`` times in ``rounds`` rounds is timed in round ``index``.

    Its samples are spread evenly over the rounds.
    """
    return (index + 1) * samples // rounds > index * samples // rounds


def once_ms(call: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Milliseconds of one call: the mean of ``repeats`` calls back to back."""
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


def time_interleaved(calls: dict[str, Callable[[], object]], device: str, budget_s: float, least: int) -> dict[str, Timing]:
    """Times all calls, one after the other in each round, every second round in reverse. Each call must have run before.

    Each call gets an equal share of ``budget_s`` seconds, so a slow one is left out of some rounds. A call is timed at least
    ``least`` times, or 3 times where that takes very long.
    """
    estimate = {name: once_ms(call, device) for name, call in calls.items()}
    estimate |= {name: min(ms, once_ms(calls[name], device)) for name, ms in estimate.items() if ms < 1e3}
    repeats = {name: max(1, round(GPU_SAMPLE_MS / ms)) if device == "cuda" else 1 for name, ms in estimate.items()}
    settle = {name: ms < SHORT_MS for name, ms in estimate.items()}
    share_s = budget_s / max(1, len(calls))
    wanted = {name: plan_samples(ms * (repeats[name] + settle[name]) / 1e3, share_s, least) for name, ms in estimate.items()}
    rounds = max(wanted.values(), default=0)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(rounds):
            timed = [name for name in calls if takes_part(index, wanted[name], rounds)]
            for name in timed if index % 2 == 0 else reversed(timed):
                if settle[name]:
                    calls[name]()
                samples[name].append(once_ms(calls[name], device, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(times) for name, times in samples.items()}


def product_call(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """(call, scale) for the time of one matrix product (N, D) by (D, M) on the CPU, into an output that exists already.

    The product takes ``scale`` times the time of the call: a large one is timed on some of its rows.
    """
    n, m, d = shape
    slab = min(n, max(1, _PRODUCT_ELEMENTS // m))
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(m, d, generator=generator).to(dtype)
    x = y[:slab] if n == m else torch.randn(slab, d, generator=generator).to(dtype)
    out = torch.empty(slab, m, dtype=dtype)
    call = lambda: torch.mm(x, y.T, out=out)  # noqa: E731
    call()
    return call, n / slab


def product_dtype(shape: tuple[int, int, int], dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a CPU multiplies matrices of ``dtype`` fastest: itself or, where torch.mm of 16 bits is slow, float32.

    torch.mm of float16 is 10 times slower than that of float32 on a CPU without instructions for it: no limit at all.
    """
    if dtype.itemsize != 2:
        return dtype
    small = tuple(min(size, 1024) for size in shape)
    calls = {each: product_call(small, each)[0] for each in (dtype, torch.float32)}
    return min(calls, key=lambda each: min(once_ms(calls[each], "cpu") for _ in range(7)))


def memory_call(moved: float) -> tuple[Callable[[], object], float]:
    """(call, scale) for the time in which a CPU reads and writes ``moved`` bytes in all, ``scale`` times that of the call.

    The call passes over a buffer in place, as an update does. A copy would be no measure: it first fetches the cache lines that it
    overwrites, and those bytes are not counted. The buffer is as large as what is moved, and half of the time counts: half of it
    might fit the last-level cache where what an op reads and writes, in two places, does not.
    """
    buffer = torch.ones(max(1, round(min(moved, _PASS_BYTES) / 4)), dtype=torch.float32)
    call = lambda: buffer.neg_()  # noqa: E731
    call()
    return call, moved / (2 * buffer.nbytes)


def gpu_memory_rate(size: int = 1 << 29, rounds: int = 9, repeats: int = 3) -> float:
    """Bytes a second that a copy between two buffers of ``size`` float32 numbers reads and writes."""
    source = torch.randn(size, device="cuda")
    out = torch.empty_like(source)
    call = lambda: out.copy_(source)  # noqa: E731
    call()
    ms = statistics.median(once_ms(call, "cuda", repeats) for _ in range(rounds))
    return 2.0 * source.nbytes / (ms * 1e-3)


def host_ms(call: Callable[[], object], synchronize: Callable[[], object], rounds: int = 15) -> float:
    """Milliseconds until the call returns, without a wait for the device; the device is idle before each call."""
    samples = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    synchronize()
    return statistics.median(samples)


def gpu_launches(call: Callable[[], object]) -> tuple[int | None, str]:
    """(count, "") of the kernels, copies and fills that one call starts on the GPU, or (None, the reason why it is unknown)."""
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
    """FLOP/s of a large square matrix product on random data: the limit that GPU results are compared with."""
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
