"""The ring, step by step and rank by rank: for uneven batches and unsteady GPUs, where the closed form is only a bound.

At step t rank r holds the chunk of rank (r - t) mod W. Step t of rank r begins when its own step t - 1 is computed and all
transfers that it began then are done. It asks for the transfers to rank r + 1 and from rank r - 1, and computes. A transfer
begins when both of its ranks have asked, since a receiver without a free buffer takes nothing. So, with c the time of the chunk
at the rank, and x that of the transfer from r to r + 1,

    done[r]   = max(begin[r], begin[r + 1]) + x[r]
    begin'[r] = max(begin[r] + c[r], done[r], done[r - 1])

In the backward the gradient of a chunk follows it by one step: what the rank computed at step t is added to what came from rank
r - 1 and travels during step t + 1. After the last step the gradients take one more hop, which nothing hides. Imports ``links``.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.scaling.links import Link


@dataclass(frozen=True)
class Run:
    """What happened: ``seconds`` until the last rank was done, ``compute`` of the rank with most of it, ``busy``, the longest
    that a link was at work, and ``sent``, the bytes that each rank sent."""

    seconds: float
    compute: float
    busy: float
    sent: np.ndarray


def run(hops: list[Link], compute: np.ndarray, chunk: np.ndarray, gradient: np.ndarray | None = None) -> Run:
    """Runs a ring.

    Args:
        hops: W links, from each rank to the next.
        compute: (W, W) seconds that rank r needs for the chunk of rank k.
        chunk: (W,) bytes of the columns of each rank.
        gradient: (W,) bytes of the gradients of these columns, in a backward; None in a forward.
    """
    world, ranks = len(hops), np.arange(len(hops))
    rate, latency = (np.array([getattr(hop, name) for hop in hops]) for name in ("bytes_per_s", "latency"))
    begin, sent, busy, total = np.zeros(world), np.zeros(world), np.zeros(world), np.zeros(world)
    for step in range(world + (gradient is not None and world > 1)):
        amount = np.zeros(world)
        if step < world - 1:
            amount += chunk[(ranks - step) % world]
        if gradient is not None and step > 0 and world > 1:
            amount += gradient[(ranks - step + 1) % world]
        needed = compute[ranks, (ranks - step) % world] if step < world else np.zeros(world)
        takes = np.where(amount > 0, latency + amount / rate, 0.0)
        done = np.where(amount > 0, np.maximum(begin, np.roll(begin, -1)) + takes, 0.0)
        begin = np.maximum(begin + needed, np.maximum(done, np.roll(done, 1)))
        sent, busy, total = sent + amount, busy + takes, total + needed
    return Run(float(begin.max()), float(total.max()), float(busy.max()), sent)
