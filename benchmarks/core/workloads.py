"""The two kinds of workloads: a loss, timed forward and backward, and an update, a step that changes its state in place.

A workload takes a case of the tables in ``fastssl.testing`` (inputs, our call, the eager form, FLOPs, bytes) and adds what a
benchmark needs: a title, constants, shapes, targets, and the time that is predicted for a GPU. Imports ``accuracy``,
``predicted`` and ``rates``.
"""

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
#: Milliseconds that the launches of a loss take, forward and backward; an estimate.
STEP_MS = 0.02
#: Our own loss of the same values in float32: what losses in 16 bits on a CPU are also compared with.
IN_FLOAT32 = "fastssl_float32"
#: What "not slower" means: two equal implementations differ by up to 3 % within a run.
AS_FAST = 0.97


@dataclass(frozen=True)
class Target:
    """What a result should reach at one shape. ``kind`` says how ``value`` is meant:

    "times_faster": at least ``value`` times as fast as ``peer``; "not_slower": the same, with a ``value`` a little under 1, since
    two equal implementations differ that much within a run; "times_less_memory": at least ``value`` times less memory than
    ``peer``; "times_limit": at most ``value`` times the limit; "peak_mb", "ms", "launches": at most ``value``; "runs": forward and
    backward run.
    """

    shape: Shape
    kind: str
    value: float
    peer: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        peer = "fastssl in float32" if self.peer == IN_FLOAT32 else self.peer
        return {
            "times_faster": f">= {self.value:g}x {peer}",
            "not_slower": f"not slower than {peer}, within the spread of a run (>= {self.value:g}x)",
            "times_less_memory": f">= {self.value:g}x less memory above the inputs than {peer}",
            "times_limit": f"<= {self.value:g}x the limit",
            "peak_mb": f"<= {self.value:g} MB above the inputs",
            "ms": f"<= {self.value:g} ms",
            "launches": f"<= {self.value:g} launches",
            "runs": "forward and backward run",
        }[self.kind]


def faster(shape: Shape, **times: float) -> tuple[Target, ...]:
    """Targets "times_faster" at one shape; each keyword is a peer."""
    return tuple(Target(shape, "times_faster", value, peer) for peer, value in times.items())


def fast_bfloat16(*shapes: Shape) -> tuple[Target, ...]:
    """What bfloat16 should reach on a CPU whose bfloat16 product is faster than its float32 one."""
    return tuple(
        target
        for shape in shapes
        for target in (
            Target(shape, "times_faster", 1.8, IN_FLOAT32, "bfloat16"),
            Target(shape, "times_faster", 2.5, "eager", "bfloat16"),
            Target(shape, "times_limit", 1.25, dtype="bfloat16"),
        )
    )


def no_slower_float16(*shapes: Shape) -> tuple[Target, ...]:
    return tuple(Target(shape, "not_slower", AS_FAST, IN_FLOAT32, "float16") for shape in shapes)


@dataclass(frozen=True)
class Plan:
    """What a loss costs a GPU, from which its time is predicted.

    ``tiles``: for rows up to 256 wide, (kernel, sweeps); a kernel reaches the share of the matrix rate that
    ``benchmarks.tune.predict`` gives its tile. ``chunks``: for wider rows, (sweeps at the rate of the vendor's product, bytes for
    each logit that pass between the products, through L2). ``wide``: the kernels of ``similarity_wide``, for losses that never
    store the logits of wide rows; ``chunks`` is then what is left to the vendor's product.
    """

    tiles: tuple[tuple[str, float], ...]
    chunks: tuple[float, float]
    wide: tuple[str, ...] = ()

    def ms(self, product: tuple[int, int, int], sweep_flops: float, rates: Rates) -> float:
        """Predicted milliseconds for the product (N, M, D), of ``sweep_flops`` a sweep, on a GPU of these rates."""
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
        """The tiles of ``similarity_wide``, one wave of them after another, and the sums of the chunks that are multiplied.

        Each chunk of weights adds float32 sums to those of the chunks before: one is written, two are read, one is written.
        """
        total = 0.0
        for kernel in self.wide:
            clocks, logits = predicted.wide_clocks(kernel, d)
            total += math.ceil(n * m / logits / predicted.NUM_SMS) * clocks
        r, c = w_shape(n, m)
        sums = 16 * (r + c) * d * math.ceil(n / r) * math.ceil(m / c) if self.chunks[0] else 0
        return total * predicted.NUM_SMS * predicted.MATRIX_FLOP / rates.matrix_flop_per_s + sums / rates.bytes_per_s


def _least_ms(workload: "Workload | Update", shape: Shape, rates: Rates) -> float:
    moved = workload.case.bytes(shape, workload.dtype(torch.bfloat16).itemsize)
    return 1e3 * max(moved / rates.bytes_per_s, workload.case.flops(shape) / rates.flop_per_s)


@dataclass(frozen=True)
class Workload:
    """A loss, and how to measure it.

    ``constants``: keywords that every implementation gets. ``constant_inputs``: names of inputs without gradient, such as a queue.
    ``shapes``, ``quick``, ``scale`` and ``gpu``: the shapes that are measured on a CPU, at first glance, on request, and on a GPU.
    ``sixteen``: those that are measured on a CPU in bfloat16 and float16, where one of these is asked for.
    ``product``: shape -> (N, M, D) of one sweep. ``truth``: float64 results for shapes whose eager form takes too much memory.
    ``largest``: rows up to which a float64 result can be had, by device.
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
    sixteen: tuple[Shape, ...] = ()
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
        """The dtype that the loss is measured in, where this one is wanted."""
        return wanted

    def cpu_shapes(self, dtype: torch.dtype) -> tuple[Shape, ...]:
        """The shapes that are measured on a CPU in this dtype."""
        return self.sixteen if dtype.itemsize == 2 and self.sixteen else self.shapes

    def sweep_flops(self, shape: Shape) -> float:
        """U in FLOP."""
        n, m, d = self.product(shape)
        return 2.0 * n * m * d

    def least_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """Milliseconds in which a GPU could do the least FLOPs of the step, or move its least bytes, in 16 bits."""
        return _least_ms(self, shape, rates)

    def predicted_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """Milliseconds that ``gpu_plan`` predicts for the whole step on a GPU of these rates."""
        return self.gpu_plan.ms(self.product(shape), self.sweep_flops(shape), rates)

    def timed_step(self, call: Callable, shape: Shape, dtype: torch.dtype) -> Callable[[], object]:
        """One forward and backward of an implementation on inputs of its own, on the CPU."""
        inputs = accuracy.leaves(self.case.inputs(shape, dtype=dtype), constant=self.constant_inputs)
        return partial(accuracy.timed_step, call, inputs)


@dataclass(frozen=True)
class Update:
    """A step that changes tensors in place or makes new ones, and how to measure it. The fields are those of ``Workload``.

    The limit of an update is the time of ``case.bytes`` at the rate of this machine's memory; of one with a ``product``, that of
    ``case.flops`` at the rate of that matrix product, as for losses. It is measured in ``dtypes`` only: in the first of them where
    another dtype is asked for.
    ``gpu_times``: the time that is predicted for a GPU, in times of the limit; more than 1 where a kernel reads something twice.
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
    gpu_times: float = 1.0
    kind = "update"

    @property
    def name(self) -> str:
        return self.case.name

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """The dtype that the update is measured in, where this one is wanted."""
        return wanted if wanted in self.dtypes else self.dtypes[0]

    def cpu_shapes(self, dtype: torch.dtype) -> tuple[Shape, ...]:
        """The shapes that are measured on a CPU: the same in each dtype."""
        return self.shapes

    def rows(self, shape: Shape) -> int:
        """The number of keys, or of tensors of the model."""
        return len(MODELS[shape[0]]) if shape[0] in MODELS else shape[0]

    def sweep_flops(self, shape: Shape) -> float:
        """FLOP of one matrix product of ``product``."""
        n, m, d = self.product(shape)
        return 2.0 * n * m * d

    def least_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """Milliseconds in which a GPU could move the least bytes of the step, or do its FLOPs, in the narrowest of its dtypes."""
        return _least_ms(self, shape, rates)

    def predicted_ms(self, shape: Shape, rates: Rates = H200) -> float:
        """Milliseconds on a GPU of these rates: the step's least, which most updates are predicted to reach."""
        return self.gpu_times * self.least_ms(shape, rates)

    def own(self, state: State) -> State:
        """A state for one implementation: copies of what its steps may change; the rest is shared."""
        return copied(state, state.keys() - set(self.case.shared))

    def run(self, bind: Callable[[State], Step], state: State) -> Step:
        """The step of an implementation, after it ran ``case.steps`` times, which is what a comparison needs."""
        step = bind(state)
        for _ in range(self.case.steps):
            step()
        return step

    def timed_step(self, bind: Callable[[State], Step], shape: Shape, dtype: torch.dtype) -> Step:
        """One step of an implementation on a state of its own, on the CPU."""
        return bind(self.case.state(shape, dtype=dtype))


def shape_name(shape: Shape) -> str:
    """(4096, 128) -> "4096x128"."""
    return "x".join(map(str, shape))


def parse_shape(text: str, workload: Workload | Update) -> Shape:
    """Reads "4096x128" as (4096, 128), and "resnet50" as ("resnet50",) where the shape is a model.

    Raises ValueError where the text is no shape of this workload.
    """
    like = workload.shapes[0]
    if like[0] in MODELS:
        if text not in MODELS:
            raise ValueError(f"bench: model must be one of {', '.join(MODELS)}, got {text!r}")
        return (text,)
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) != len(like) or min(shape, default=0) < 1:
        raise ValueError(f"bench: shape must read like {shape_name(like)} ({workload.axes}), got {text!r}")
    return shape
