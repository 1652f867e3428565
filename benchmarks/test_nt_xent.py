"""NT-Xent at small shapes under pytest-benchmark, in about a minute. Each implementation must pass the accuracy check first.

    pytest benchmarks        prints a table for each shape

The full comparison, with memory, limit and targets, is ``fastssl bench nt_xent``.
"""

import time
from functools import cache

import pytest
import torch

from benchmarks.core import runner
from benchmarks.core.registry import WORKLOADS, shape_name
from benchmarks.peers import NAMES

WORKLOAD = WORKLOADS["nt_xent"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SECONDS = 0.5


@cache
def _prepared(shape):
    """Inputs and truth of a shape, once for all implementations."""
    return runner.prepare(WORKLOAD, shape, runner.Options(device=DEVICE))


@pytest.mark.parametrize("name", (runner.OURS, *NAMES))
@pytest.mark.parametrize("shape", WORKLOAD.quick, ids=shape_name)
def test_nt_xent(benchmark, shape, name):
    torch._dynamo.reset()
    prepared = _prepared(shape)
    entry, step = runner.admit(prepared, name)
    if entry["status"] in ("absent", "other objective", "too large"):
        pytest.skip(f"{name}: {entry['status']}: {entry['reason']}")
    assert step is not None, f"{name}: {entry['status']}: {entry['reason']}"
    benchmark.group = f"NT-Xent, forward + backward, {shape_name(shape)} ({WORKLOAD.axes})"
    benchmark.extra_info |= {"grad_error": entry["grad_error"], "limit_flops": WORKLOAD.case.flops(shape)}

    def timed():
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    timed()
    rounds = int(SECONDS / max(time.perf_counter() - start, 1e-6))
    benchmark.pedantic(timed, rounds=min(max(rounds, 3), 200), iterations=1, warmup_rounds=1 if rounds > 3 else 0)
