"""Time, memory and bytes of a loss over W ranks, each with N rows and M columns of width D: predicted, for others to refute.

Every rank compares its N rows with the W M columns of all ranks; the backward also brings the gradient of each column home. A
number of a column takes s bytes, one of its gradient g = 4. c(N, M) is the compute of N rows against M columns, forward or
backward.

    gather    forward    all-gather of the columns, then c(N, W M)       sent (W - 1) M D s
              backward   c(N, W M), then reduce-scatter                  sent (W - 1) M D g
              memory     gradients of the own rows and columns; all columns and their gradients, in 16 bits also in float32
    ring      the columns of a rank travel in parts of P <= M columns, one part of every rank at a time
              forward    for each part W steps of c(N, P); it moves on during each but the last       sent (W - 1) M D s
              backward   the same, the gradient one step behind, and one hop more                     sent (W - 1) M D s + W M D g
              memory     gradients of the own rows and columns; two parts, and four times the gradient of a part
    rails     a ring inside each node for each step of a ring between the nodes, in which every GPU sends by a card of its own; not
              built, the model shows what it would gain

With equal batches and x(b) the time in which the slowest hop moves b bytes, a part goes around in exactly

    forward   c + (W - 1) max(c, x(part))
    backward  max(c, x(part)) + (W - 2) max(c, x(part + gradient)) + max(c, x(gradient)) + x(gradient)            for W > 1

since a rank waits for its slower neighbour at each step, and the ranks at the slowest hop never wait for anybody else. Else
``events`` runs it. A ring is hidden where c(N, P) >= x: both sides grow with P D, so what decides is N, the number of rows of a
rank:

    2 N P D / rate >= P D s / link      N >= s rate / (2 link)      forward; backward 3 or 4 times 2 N P D, and s + g

A step takes at least ``host``, in which Python asks for its kernels. ``waiting`` is the time of a pass in which the GPU computes
nothing, because of a transfer or of Python. Imports ``compute``, ``events`` and ``links``.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.scaling import events
from benchmarks.scaling.compute import Kernels
from benchmarks.scaling.links import HGX, Cluster, Link
from fastssl.distributed.travel import PART_BYTES, PIECE_BYTES

TRANSPORTS = ("gather", "ring", "rails")
#: Bytes of float32, in which gradients are summed.
SUM = 4
#: Seconds of Python in a step of the ring, forward and backward, without those of its transfers: the least that
#: ``python -m benchmarks.scaling.host`` printed on a Xeon core.
HOST = 2.0e-4, 1.3e-4


@dataclass(frozen=True)
class Problem:
    """N rows and M columns of width D on each of W ranks, for a loss in one direction. CLIP's loss lets one side travel too, and
    takes as many sweeps, so that its costs are nearly the same.

    ``itemsize`` is s. ``part_bytes`` is the size of a part in the ring, ``piece_bytes`` that of the rows of one call of the ring's
    backward, ``beside`` what travels beside each column, such as the bytes of its id. ``noise`` is the relative standard deviation
    of the time of one step, for ``events``.
    """

    rows: int
    width: int
    world: int
    columns: int = 0
    itemsize: int = 2
    part_bytes: int = PART_BYTES
    piece_bytes: int = PIECE_BYTES
    host: tuple[float, float] = HOST
    beside: int = 0
    noise: float = 0.0

    @property
    def m(self) -> int:
        return self.columns or self.rows

    @property
    def batch(self) -> int:
        """Rows of all ranks."""
        return self.rows * self.world

    def bytes(self, columns: int) -> float:
        return columns * (self.width * self.itemsize + self.beside)

    def gradient(self, columns: int) -> float:
        return columns * self.width * SUM

    def parts(self) -> list[tuple[int, int]]:
        """(columns of a part, number of such parts)."""
        return _cut(self.m, self.part_bytes // (self.width * self.itemsize))

    def pieces(self) -> list[tuple[int, int]]:
        """(rows of a piece, number of such pieces)."""
        return _cut(self.rows, self.piece_bytes // (self.width * self.itemsize))


def _cut(total: int, size: int) -> list[tuple[int, int]]:
    size = max(1, min(total, size))
    return [(each, count) for each, count in ((size, total // size), (total % size, 1)) if each and count]


@dataclass(frozen=True)
class Pass:
    """Seconds of a forward or a backward: all of it, its kernels, and its transfers."""

    seconds: float
    compute: float
    communication: float

    @property
    def waiting(self) -> float:
        """The part in which the GPU computes nothing."""
        return self.seconds - self.compute

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(self.seconds + other.seconds, self.compute + other.compute, self.communication + other.communication)

    def times(self, count: int) -> "Pass":
        return Pass(count * self.seconds, count * self.compute, count * self.communication)


@dataclass(frozen=True)
class Prediction:
    """What one transport is predicted to cost. ``memory`` and ``sent`` are bytes of a rank."""

    transport: str
    forward: Pass
    backward: Pass
    memory: float
    sent: float

    @property
    def seconds(self) -> float:
        return self.forward.seconds + self.backward.seconds

    @property
    def waiting(self) -> float:
        return self.forward.waiting + self.backward.waiting

    @property
    def compute(self) -> float:
        return self.forward.compute + self.backward.compute


@dataclass(frozen=True)
class Machine:
    """GPUs and their links."""

    kernels: Kernels
    cluster: Cluster = field(default=HGX)


def sent(problem: Problem, transport: str) -> float:
    """Bytes that a rank sends in forward and backward."""
    p, others = problem, problem.world - 1
    if transport == "gather" or not others:
        return others * (p.bytes(p.m) + p.gradient(p.m))
    return 2 * others * p.bytes(p.m) + p.world * p.gradient(p.m)


def memory(problem: Problem, transport: str) -> float:
    """Bytes of a rank above its rows and columns at the peak, in the backward: what the formulas above name. The scratch memory of
    kernels is left out.
    Gradients are summed in float32; what a kernel made in 16 bits is cast before, and the sums after.
    """
    p = problem
    own = (p.rows + p.m) * p.width * (SUM + (p.itemsize if p.itemsize < SUM else 0)) + 12 * p.rows
    if p.world == 1:
        return own
    if transport == "gather":
        everyone = p.world * p.m
        return own + 2 * p.bytes(everyone) + (p.gradient(everyone) if p.itemsize < SUM else 0)
    part = p.parts()[0][0]
    return own + 2 * p.bytes(part) + 4 * p.gradient(part)


def _gather(problem: Problem, machine: Machine) -> tuple[Pass, Pass]:
    p, kernels, cluster = problem, machine.kernels, machine.cluster
    passes = []
    for compute, amount in ((kernels.forward, p.bytes(p.m)), (kernels.backward, p.gradient(p.m))):
        needed, moved = compute(p.rows, p.world * p.m, p.width), cluster.collective(p.world, amount)
        passes.append(Pass(needed + moved, needed, moved))
    return passes[0], passes[1]


def step_seconds(problem: Problem, kernels: Kernels, part: int) -> tuple[float, float]:
    """c(N, P) of a step of the ring, forward and backward: its kernels, without regard to ``host``."""
    p = problem
    backward = sum(count * kernels.backward(rows, part, p.width) for rows, count in p.pieces())
    backward += kernels.sums(p.rows, part, p.width)
    return kernels.forward(p.rows, part, p.width), backward


def closed_ring(c: float, hop: Link, world: int, chunk: float, gradient: float = 0.0) -> Pass:
    """A ring of equal parts of ``chunk`` bytes whose slowest hop is ``hop``; a backward where it has a gradient."""
    if world == 1:
        return Pass(c, c, 0.0)
    x, last = hop.seconds(chunk), world - 1
    if not gradient:
        return Pass(c + last * max(c, x), world * c, last * x)
    both, home = hop.seconds(chunk + gradient), hop.seconds(gradient)
    seconds = max(c, x) + (world - 2) * max(c, both) + max(c, home) + home
    return Pass(seconds, world * c, x + (world - 2) * both + 2 * home)


def _around(p: Problem, machine: Machine, c: float, part: int, gradient: float) -> Pass:
    hops = machine.cluster.hops(p.world)
    if not p.noise:
        slowest = max(hops, key=lambda hop: hop.seconds(p.bytes(part) + gradient))
        return closed_ring(c, slowest, p.world, p.bytes(part), gradient)
    times = c * np.random.default_rng(0).lognormal(sigma=p.noise, size=(p.world, p.world))
    amounts = (np.full(p.world, p.bytes(part)), np.full(p.world, gradient) if gradient else None)
    ran = events.run(hops, times, *amounts)
    return Pass(ran.seconds, p.world * c, ran.busy)


def _around_rails(p: Problem, machine: Machine, c: float, part: int, gradient: float) -> Pass:
    """A step of the outer ring is a whole inner ring, in which the gradients come home to the node's GPU that sends them on."""
    cluster = machine.cluster
    inner = closed_ring(c, cluster.nvlink, min(p.world, cluster.per_node), p.bytes(part), gradient)
    outer = closed_ring(inner.seconds, cluster.network, cluster.nodes(p.world), p.bytes(part), gradient)
    return Pass(outer.seconds, p.world * c, outer.communication)


def _ring(around, problem: Problem, machine: Machine) -> tuple[Pass, Pass]:
    """All parts, one after the other."""
    passes = [Pass(0.0, 0.0, 0.0), Pass(0.0, 0.0, 0.0)]
    calls = 1, sum(count for _, count in problem.pieces())
    for part, count in problem.parts():
        kernels = step_seconds(problem, machine.kernels, part)
        for k, gradient in enumerate((0.0, problem.gradient(part))):
            took = around(problem, machine, max(kernels[k], calls[k] * problem.host[k]), part, gradient)
            passes[k] += replace(took, compute=problem.world * kernels[k]).times(count)
    return passes[0], passes[1]


def predict(problem: Problem, machine: Machine, transport: str) -> Prediction:
    """Predicts forward and backward of ``problem`` by one of ``TRANSPORTS``. Raises ValueError for another."""
    if transport not in TRANSPORTS:
        raise ValueError(f"scaling: transport must be one of {', '.join(TRANSPORTS)}, got {transport!r}")
    if problem.world == 1 or transport == "gather":
        forward, backward = _gather(problem, machine)
    else:
        forward, backward = _ring(_around if transport == "ring" else _around_rails, problem, machine)
    return Prediction(transport, forward, backward, memory(problem, transport), sent(problem, transport))


def hidden_from(problem: Problem, machine: Machine, transport: str, share: float = 0.05, largest: int = 1 << 18) -> int | None:
    """The least N, a multiple of 256, at which ``transport`` waits for at most ``share`` of its compute; None above ``largest``."""

    def hidden(rows: int) -> bool:
        found = predict(replace(problem, rows=rows, columns=0, host=(0.0, 0.0)), machine, transport)
        return found.waiting <= share * found.compute

    low, high = 0, largest // 256
    if not hidden(largest):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hidden(256 * middle) else (middle, high)
    return 256 * high
