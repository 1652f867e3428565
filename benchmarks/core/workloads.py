"""The two kinds of works: a loss, timed forward and backward, and an update, a step that changes its state in place."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks.core import accuracy, predicted
from benchmarks.core.rates import H200, Rates
from fastssl.kernels.tiles.config import w_shape
from fastssl.testing.cases import OpCase
from fastssl.testing.updates import MODELS, State, Step, UpdateCase, copied

#: Sizes, or the name of a model.
Shape = tuple[int | str, ...]
#: Launches of a loss forward and backward, not measured.
STEP_MS = 0.02


@dataclass(frozen=True)
class Target:
    """What a result should reach at one shape.

    ``kind``: "times_faster" than ``peer`` (at least ``value``), "not_slower" than ``peer`` (the same, ``value`` a little under 1:
    the spread of a run), "times_less_memory" than ``peer`` (at least), "times_limit" (at most ``value`` times the limit),
    "peak_mb", "ms" and "launches" (at most), "runs".
    """

    shape: Shape
    kind: str
    value: float
    peer: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        return {
            "times_faster": f">= {self.value:g}x {self.peer}",
            "not_slower": f"not slower than {self.peer}, within the spread of a run (>= {self.value:g}x)",
            "times_less_memory": f">= {self.value:g}x less memory above the inputs than {self.peer}",
            "times_limit": f"<= {self.value:g}x the limit",
            "peak_mb": f"<= {self.value:g} MB above the inputs",
            "ms": f"<= {self.value:g} ms",
            "launches": f"<= {self.value:g} launches",
            "runs": "forward and backward run",
        }[self.kind]


def faster(shape: Shape, **times: float) -> tuple[Target, ...]:
    return tuple(Target(shape, "times_faster", value, peer) for peer, value in times.items())


@dataclass(frozen=True)
class Plan:
    """What a loss costs a GPU, to predict its time.

    ``tiles``: (kernel, sweeps) for rows up to 256 wide, at the share of the matrix rate that ``benchmarks.tune.predict`` gives the
    kernel's tile. ``chunks``: for wider rows, sweeps at the rate of the vendor's product, and bytes for each logit that pass
    between the products, through L2. ``wide``: where such rows never store their logits, the kernels of ``similarity_wide``, and
    ``chunks`` what is left to the vendor.
    """

    tiles: tuple[tuple[str, float], ...]
    chunks: tuple[float, float]
    wide: tuple[str, ...] = ()

    def ms(self, product: tuple[int, int, int], sweep_flops: float, rates: Rates) -> float:
        n, m, d = product
        if d > 256:
            sweeps, moved = self.chunks
            seconds = sweeps * sweep_flops / rates.flop_per_s + moved * n * m / rates.l2_bytes_per_s
            if self.wide:
                seconds += self._wide_seconds(n, m, d, rates)
        else:
            reached = {k: min(predicted.share(k, d) * rates.matrix_flop_per_s, rates.flop_per_s) for k, _ in self.tiles}
            seconds = sum(sweeps * sweep_flops / reached[kernel] for kernel, sweeps in self.tiles)
        return 1e3 * seconds + STEP_MS

    def _wide_seconds(self, n: int, m: int, d: int, rates: Rates) -> float:
        """Tiles of ``similarity_wide``, wave by wave; and the float32 sums that each chunk of weights adds to those before:
        written, two read, one written."""
        total = 0.0
        for kernel in self.wide:
            clocks, logits = predicted.wide_clocks(kernel, d)
            total += math.ceil(n * m / logits / predicted.NUM_SMS) * clocks
        r, c = w_shape(n, m)
        sums = 16 * (r + c) * d * math.ceil(n / r) * math.ceil(m / c)
        return total * predicted.NUM_SMS * predicted.MATRIX_FLOP / rates.matrix_flop_per_s + sums / rates.bytes_per_s


def _least_ms(work: "Work | Update", shape: Shape, rates: Rates) -> float:
    moved = work.case.bytes(shape, work.dtype(torch.bfloat16).itemsize)
    return 1e3 * max(moved / rates.bytes_per_s, work.case.flops(shape) / rates.flop_per_s)


@dataclass(frozen=True)
class Work:
    """One row of the benchmark: a loss, and how to measure it.

    ``constants`` are keywords that every implementation gets; ``constant_inputs`` names inputs without gradient (a queue).
    """

    case: OpCase
    title: str
    axes: str
    constants: dict[str, float]
    shapes: tuple[Shape, ...]
    rows: Callable[[Shape], int]
    product: Callable[[Shape], tuple[int, int, int]]
    quick: tuple[Shape, ...] = ()
    scale: tuple[Shape, ...] = ()
    gpu: tuple[Shape, ...] = ()
    targets: tuple[Target, ...] = ()
    gpu_targets: tuple[Target, ...] = ()
    gpu_plan: "Plan | None" = None
    truth: Callable | None = None
    constant_inputs: tuple[str, ...] = ()
    largest: dict[str, int] = field(default_factory=lambda: {"cpu": 16384, "cuda": 65536})
    kind = "loss"

    @property
    def name(self) -> str:
        return self.case.name

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """What it is measured in."""
        return wanted

    def sweep_flops(self, shape: Shape) -> float:
        """U in FLOP."""
        n, m, d = self.product(shape)
        return 2.0 * n * m * d

    def least_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """ms in which a GPU could do the step's least FLOPs, or move its least bytes, in 16 bits."""
        return _least_ms(self, shape, rates)

    def predicted_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """ms on a GPU of these rates, of the whole step: ``gpu_plan``."""
        return self.gpu_plan.ms(self.product(shape), self.sweep_flops(shape), rates)

    def turn(self, call: Callable, shape: Shape, dtype: torch.dtype) -> Callable[[], object]:
        """One forward and backward of an implementation on inputs of its own, on the CPU."""
        return partial(accuracy.turn, call, accuracy.leaves(self.case.inputs(shape, dtype=dtype), constant=self.constant_inputs))


@dataclass(frozen=True)
class Update:
    """One row of the benchmark: a step that changes tensors in place or makes new ones, and how to measure it.

    Its limit is ``case.bytes`` at the rate of this machine's memory, or, where it has a ``product``, ``case.flops`` at the rate of
    that matrix product, as for losses. Measured in ``dtypes`` only, the first where another is asked for.
    """

    case: UpdateCase
    title: str
    axes: str
    constants: dict[str, float]
    shapes: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    gpu: tuple[Shape, ...]
    targets: tuple[Target, ...] = ()
    gpu_targets: tuple[Target, ...] = ()
    product: Callable[[Shape], tuple[int, int, int]] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    scale: tuple[Shape, ...] = ()
    kind = "update"

    @property
    def name(self) -> str:
        return self.case.name

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """What it is measured in."""
        return wanted if wanted in self.dtypes else self.dtypes[0]

    def rows(self, shape: Shape) -> int:
        """Keys, or tensors of the model."""
        return len(MODELS[shape[0]]) if shape[0] in MODELS else shape[0]

    def sweep_flops(self, shape: Shape) -> float:
        n, m, d = self.product(shape)
        return 2.0 * n * m * d

    def least_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """ms in which a GPU could move the step's least bytes, or do its FLOPs, in the narrowest dtype it is measured in."""
        return _least_ms(self, shape, rates)

    def predicted_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """ms on a GPU of these rates: no more than the step's least."""
        return self.least_ms(shape, rates)

    def own(self, state: State) -> State:
        """The state of one implementation: copies of what its steps may change, the rest shared."""
        return copied(state, state.keys() - set(self.case.shared))

    def run(self, bind: Callable[[State], Step], state: State) -> Step:
        """The step of an implementation, after it was run as often as it takes to compare it."""
        step = bind(state)
        for _ in range(self.case.steps):
            step()
        return step

    def turn(self, bind: Callable[[State], Step], shape: Shape, dtype: torch.dtype) -> Step:
        """One step of an implementation on a state of its own, on the CPU."""
        return bind(self.case.state(shape, dtype=dtype))


def shape_name(shape: Shape) -> str:
    return "x".join(map(str, shape))


def parse_shape(text: str, work: Work | Update) -> Shape:
    """Reads "4096x128" as (4096, 128), and "resnet50" as ("resnet50",) where the shape is a model."""
    like = work.shapes[0]
    if like[0] in MODELS:
        if text not in MODELS:
            raise ValueError(f"bench: model must be one of {', '.join(MODELS)}, got {text!r}")
        return (text,)
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) != len(like) or min(shape, default=0) < 1:
        raise ValueError(f"bench: shape must read like {shape_name(like)} ({work.axes}), got {text!r}")
    return shape
