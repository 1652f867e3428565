"""One process of a measurement: a loss over W processes on gloo, one thread each; prints what it measured as one line of JSON.

    python -m benchmarks.scaling.worker LOSS ROWS WIDTH RANK WORLD STORE WHAT TRANSPORT...

WHAT "memory": peak of one forward and backward above its rows, after a small one, for one transport: ``resident_mb``, by which the
process grows (``benchmarks.core.memory``), and ``allocated_mb``, the peak of torch's own allocations, which has neither the scratch
memory of C++ kernels nor the buffers of gloo; and the bytes that were sent. WHAT "time": seconds of a step of each transport,
interleaved, between two barriers.

Bytes are counted where torch takes them over: a gather or reduce-scatter of n bytes for each process counts (W - 1) n, as a ring
of W processes sends. Imports ``benchmarks.core`` and ``fastssl``.
"""

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed
from torch.distributed import _functional_collectives as functions
from torch.profiler import ProfilerActivity, profile

from benchmarks.core.memory import WARM_ROWS, rise_mb

#: How often a step is timed, after one that is not.
ROUNDS = 3
#: torch's functional collectives, by their names since 2.13 and before -> what the result file calls them.
NAMES = {
    "all_gather_single": "gather",
    "all_gather_tensor": "gather",
    "reduce_scatter_single": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "all_to_all_single": "exchange",
}


def rows_of(loss: str, rows: int, width: int, rank: int) -> list[Tensor]:
    """The two sides of a process, of unit length, with gradient; ``loss`` may be one of ``LOSSES``."""
    made = torch.Generator().manual_seed(rank)
    sides = (torch.nn.functional.normalize(torch.randn(rows, width, generator=made), dim=1) for _ in range(2))
    return [side.requires_grad_() for side in sides]


def _info_nce(sides, group):
    from fastssl.functional import info_nce

    return info_nce(*sides, temperature=0.1, group=group)


def _clip(sides, group):
    from fastssl.functional import clip_loss

    return clip_loss(*sides, torch.tensor(10.0, requires_grad=True), group=group)


def _nt_xent(sides, group):
    from fastssl.functional import nt_xent

    return nt_xent(*sides, temperature=0.1, group=group)


LOSSES = {"info_nce": _info_nce, "clip": _clip, "nt_xent": _nt_xent}


def step_of(loss: str, sides: list[Tensor], transport: str) -> Callable[[], None]:
    """Forward and backward; ``transport`` "alone" is the loss of the process's own rows."""
    from fastssl.distributed import Ranks

    group = None if transport == "alone" else Ranks(transport=transport, even=True)

    def step() -> None:
        for side in sides:
            side.grad = None
        LOSSES[loss](sides, group).backward()

    return step


def allocated_mb(call: Callable[[], object]) -> float:
    """MB (1e6 bytes) of torch's allocations at the peak of a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


@contextmanager
def counted(world: int) -> Iterator[Counter]:
    """Counts the bytes that this process sends, by collective."""
    found: Counter = Counter()
    kept = {name: getattr(functions, name) for name in NAMES if hasattr(functions, name)}
    send = distributed.batch_isend_irecv

    def counting(name: str):
        def collective(rows: Tensor, *arguments):
            found[NAMES[name]] += (world - 1) * (rows.nbytes if NAMES[name] == "gather" else rows.nbytes // world)
            return kept[name](rows, *arguments)

        return collective

    def sending(messages):
        found["isend"] += sum(message.tensor.nbytes for message in messages if message.op is distributed.isend)
        return send(messages)

    try:
        for name in kept:
            setattr(functions, name, counting(name))
        distributed.batch_isend_irecv = sending
        yield found
    finally:
        for name, function in kept.items():
            setattr(functions, name, function)
        distributed.batch_isend_irecv = send


def _memory(loss: str, rows: int, width: int, rank: int, world: int, transport: str) -> dict:
    step_of(loss, rows_of(loss, WARM_ROWS, width, rank), transport)()
    step = step_of(loss, rows_of(loss, rows, width, rank), transport)
    distributed.barrier()
    resident = rise_mb(step)
    with counted(world) as sent:
        allocated = allocated_mb(step)
    return {"resident_mb": resident, "allocated_mb": allocated, "sent": dict(sent)}


def _times(loss: str, rows: int, width: int, rank: int, transports: list[str]) -> dict:
    sides = rows_of(loss, rows, width, rank)
    steps = {transport: step_of(loss, sides, transport) for transport in transports}
    taken: dict[str, list[float]] = {transport: [] for transport in transports}
    for _ in range(ROUNDS + 1):
        for transport, step in steps.items():
            distributed.barrier()
            begin = time.perf_counter()
            step()
            distributed.barrier()
            taken[transport].append(time.perf_counter() - begin)
    return {"seconds": {transport: statistics.median(each[1:]) for transport, each in taken.items()}}


def main(argv: list[str]) -> int:
    loss, rows, width, rank, world, store, what, *transports = argv
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", rank=int(rank), world_size=int(world))
    shape = loss, int(rows), int(width), int(rank)
    found = _memory(*shape, int(world), transports[0]) if what == "memory" else _times(*shape, transports)
    print(json.dumps(found), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
