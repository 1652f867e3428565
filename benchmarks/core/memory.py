"""Peak memory of one forward and backward above its inputs, with the gradients of the inputs; of an update, above its state.

On a CPU each case and implementation gets a fresh process. A small call comes first, so that libraries are loaded and code is
paged in. Then the kernel's high-water mark of resident memory is reset (/proc/self/clear_refs), the call runs once, and the rise
is the result. The allocator is told to give freed memory back, so that nothing hides in its pools. Buffers that a library grows
and keeps do count, those of the matrix product library too. A compiled implementation runs at full size first, or its compiler
would be measured; so does an update, whose first step may make the rest of its state.

On a GPU, ``torch.cuda.max_memory_allocated`` says it, in the same process.

    python -m benchmarks.core.memory WORK SHAPE DTYPE IMPLEMENTATION        prints one line of JSON

The process imports ``registry`` and ``benchmarks.peers``; who asks for a measurement imports neither.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "2"}
WARM_ROWS = 64


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def rise_mb(call: Callable[[], object]) -> float:
    """MB (1e6 bytes) by which a call raises resident memory at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    call()
    return max(0, _status_kb("VmHWM") - before) * 1024 / 1e6


def cuda_rise_mb(call: Callable[[], object]) -> float:
    """MB (1e6 bytes) by which a call raises allocated device memory at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measure(workload, shape, dtype: torch.dtype, name: str, timeout_s: float = 900.0) -> tuple[float | None, str]:
    """(MB, "") of one implementation in a fresh process, or (None, the reason why there is no number)."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.core.memory",
        workload.name,
        "x".join(map(str, shape)),
        str(dtype).partition(".")[2],
        name,
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | _GIVE_BACK, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, f"no result in {timeout_s:.0f} s"
    if done.returncode != 0:
        return None, f"process ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:160]}"
    return json.loads(done.stdout.strip().splitlines()[-1])["peak_mb"], ""


def main(argv: list[str]) -> int:
    """The fresh process: prints {"peak_mb": ...} of one implementation."""
    from benchmarks.core.registry import WORKLOADS, parse_shape
    from benchmarks.peers import implementation, load

    workload = WORKLOADS[argv[0]]
    shape, dtype, name = parse_shape(argv[1], workload), getattr(torch, argv[2]), argv[3]
    call = implementation(name, workload)
    step = workload.timed_step(call, shape, dtype)
    if workload.kind == "update" or (name != "fastssl" and load(name).needs_compile):
        step()
    else:
        workload.timed_step(call, (min(WARM_ROWS, shape[0]), *shape[1:]), dtype)()
    print(json.dumps({"peak_mb": rise_mb(step)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
