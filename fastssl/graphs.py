"""A whole training step as one CUDA graph: the host replays forward, backward, optimizer and averages with one call.

A small step is bound by what Python and torch do between its launches, which takes hundreds of microseconds in which the GPU
waits. A graph keeps the launches together with the addresses that they read and write, and a replay makes all launches again.
Every op of fastssl can be captured: none waits for the GPU, and what changes from step to step (rates, momenta and their
schedules, seeds, pointers of queues) is read on the device where it is given as a tensor there. ``docs/graphs.md`` has an example
and the rules.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .checks import check_dense, check_whole

__all__ = ["GraphedStep", "capture_step", "record"]

_OP = "capture_step"
_WHY = (
    "Nothing in it may wait for the GPU (.item(), .cpu(), print of a tensor, a branch on its value, a copy from memory that is not "
    "pinned); docs/graphs.md says what to write instead"
)


def record(
    call: Callable[[], object], warm: Callable[[], object] | None = None, **options: Any
) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of ``call`` on the current device, and what ``call`` returned; ``warm`` (or ``call``) runs before, on another stream.

    The capture changes nothing but memory of its own: what was returned has values after the first ``replay()``.

    Args:
        call: Is captured; it must not wait for the GPU.
        warm: Runs before the capture, on a stream of its own. None: ``call`` does.
        **options: The options of ``torch.cuda.graph``.

    Returns:
        The graph, and what ``call`` returned in the capture.

    Examples:
        >>> import torch
        >>> from fastssl.graphs import record
        >>> if torch.cuda.is_available():
        ...     x = torch.ones(2, device="cuda")
        ...     graph, total = record(lambda: x.sum())
        ...     graph.replay()
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        (warm or call)()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        out = call()
    return graph, out


class GraphedStep:
    """A step as a CUDA graph, which ``capture_step`` returns: ``outputs = graphed(*inputs)`` is one step.

    Attributes:
        inputs: The tensors that the step reads. A loader may write them itself; a call that is given one of them copies nothing.
        outputs: What the step returned, without gradient; every replay writes the same memory, so ``clone()`` what is to be kept.
        graph: The ``torch.cuda.CUDAGraph``.

    Examples:
        >>> import torch
        >>> from fastssl.graphs import capture_step
        >>> if torch.cuda.is_available():
        ...     graphed = capture_step(lambda x: 2 * x, torch.ones(2, device="cuda"))
        ...     _ = graphed.inputs[0].fill_(3.0)  # a loader may write the input itself
        ...     outputs = graphed(*graphed.inputs)  # copies nothing
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...], outputs: Any):
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def __call__(self, *inputs: Tensor) -> Any:
        """Copies the inputs to their places on the device and replays the step, both on the current stream, without a host sync.

        Args:
            *inputs: As many tensors as the step was captured with, of the same shapes, dtypes and devices; strides may differ.

        Returns:
            ``outputs``.

        Raises:
            TypeError, ValueError: An input differs from that of the capture; the message names it.
        """
        if len(inputs) != len(self.inputs):
            raise TypeError(f"{_OP}: the graph was captured with {len(self.inputs)} inputs, got {len(inputs)}")
        for i, (mine, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            if mine is not given:
                _check_same(i, mine, given)
        pairs = [(mine, given) for mine, given in zip(self.inputs, inputs, strict=True) if mine is not given]
        with torch.no_grad():
            for mine, given in pairs:
                mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs


def capture_step(step: Callable, *inputs: Tensor, warmup: int = 3, pool: tuple[int, int] | None = None) -> GraphedStep:
    """Captures a training step as a CUDA graph, to be called with new inputs of the same shapes, as in ``graphed(x0, x1)``.

    ``torch.cuda.make_graphed_callables`` makes one graph of a module's forward and one of its backward. This is one graph of all
    that ``step`` does: ``zero_grad(set_to_none=True)``, forward, backward, the optimizer's step, averages and queues.

    Args:
        step: Is called with ``len(inputs)`` tensors and may return tensors in tuples, lists and dicts, or None. Numbers that it
            uses are constants of the graph; what changes must be a tensor on the device.
        *inputs: Tensors on one GPU, a real batch: they are copied, and the warm-up trains with them. Without any, the GPU is the
            current one.
        warmup: The number of steps before the capture, at least 1, on a stream of their own. They are steps of training. Whatever
            the first step makes (an optimizer's momenta, compiled kernels, the vendor libraries' workspaces) must be there when
            the graph is made. Where ``warmup`` is at least 2, a wait for the GPU in the last of these steps is an error, whose
            traceback ends at the line that waits.
        pool: ``torch.cuda.graph_pool_handle()`` or another graph's ``pool()``, where graphs that never run at once are to share
            memory.

    Returns:
        A ``GraphedStep``. The capture is no step: after it, the state is that of ``warmup`` steps.

    Raises:
        TypeError, ValueError: An input is no dense tensor on one GPU, or a result is no tensor, which a replay would not renew.
        RuntimeError: The step waits for the GPU, or does something else that no graph can hold. The state is then undefined.

    Examples:
        >>> import torch
        >>> from fastssl.graphs import capture_step
        >>> model = torch.nn.Linear(2, 2)
        >>> if torch.cuda.is_available():
        ...     graphed = capture_step(model.cuda(), torch.ones(4, 2, device="cuda"))
        ...     outputs = graphed(torch.zeros(4, 2, device="cuda"))  # one replay
    """
    if not callable(step):
        raise TypeError(f"{_OP}: step must be a function, got {type(step).__name__}")
    warmup = check_whole(_OP, "warmup", warmup, 1)
    device = _device_of(inputs)
    options = {"capture_error_mode": "thread_local"} | (
        {} if pool is None else {"pool": pool}
    )  # because a loader's threads pin memory
    with torch.cuda.device(device):
        places = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in inputs)

        def warm() -> None:
            for _ in range(warmup - 1):
                step(*places)
            with _waits_are_errors() if warmup > 1 else nullcontext():
                leaves(step(*places))

        def captured():
            with _explained():
                return step(*places)

        graph, out = record(captured, warm, **options)
    found, form = leaves(out)
    return GraphedStep(graph, places, tree_unflatten([t if t is None else t.detach() for t in found], form))


def leaves(out: Any) -> tuple[list[Tensor | None], TreeSpec]:
    """The tensors of a result and its form; refuses what a replay would leave as it was."""
    found, form = tree_flatten(out)
    for value in found:
        if value is not None and not isinstance(value, Tensor):
            got = f"{type(value).__name__}, which a replay would not renew"
            raise TypeError(f"{_OP}: step must return tensors, in tuples, lists or dicts, or None, got {got}")
    return found, form


def _device_of(inputs: tuple) -> torch.device:
    """The one GPU of the inputs, or the current one."""
    for i, t in enumerate(inputs):
        check_dense(_OP, f"inputs[{i}]", t, "a tensor; give what does not change by functools.partial")
        if t.device.type != "cuda":
            raise ValueError(f"{_OP}: inputs[{i}] must be on a GPU, got {t.device}")
        if t.device != inputs[0].device:
            raise ValueError(f"{_OP}: all inputs must be on one GPU, got {inputs[0].device} and, in inputs[{i}], {t.device}")
    if not torch.cuda.is_available():
        raise RuntimeError(f"{_OP}: there is no GPU here; on a CPU call the step itself")
    return inputs[0].device if inputs else torch.device("cuda", torch.cuda.current_device())


def _check_same(i: int, mine: Tensor, given: Tensor) -> None:
    """Shape, dtype and device are the graph's; strides may be others."""
    check_dense(_OP, f"inputs[{i}]", given)
    if given.shape != mine.shape:
        wanted = f"{tuple(mine.shape)}, as when the graph was captured"
        raise ValueError(f"{_OP}: inputs[{i}] must have shape {wanted}, got {tuple(given.shape)}; capture another graph for it")
    if given.dtype != mine.dtype:
        raise TypeError(f"{_OP}: inputs[{i}] must have dtype {mine.dtype}, as when the graph was captured, got {given.dtype}")
    if given.device != mine.device:
        raise ValueError(f"{_OP}: inputs[{i}] must be on {mine.device}, as when the graph was captured, got {given.device}")


@contextmanager
def _explained() -> Iterator[None]:
    """An error of CUDA or torch from inside the step, with what to look for."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(f"{_OP}: the step cannot be captured: {str(error).splitlines()[0]}. {_WHY}") from error


@contextmanager
def _waits_are_errors() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with _explained():
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
