"""One workload at one shape, ready for the accuracy check: inputs, float64 results, errors of eager PyTorch in the same dtype.

Imports ``accuracy``, ``workloads`` and ``benchmarks.peers``.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from benchmarks.core import accuracy
from benchmarks.core.workloads import Update, Workload
from benchmarks.peers import load
from fastssl.testing.updates import State, Step, copied

#: Errors for the entry of the result, what is wrong ("" where nothing is), and the step to time.
Tried = tuple[dict[str, float], str, Callable[[], object]]


def release(device: str) -> None:
    """Hands cached device memory back to the device, after an implementation did not fit."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class PreparedLoss:
    """A loss with its inputs and their float64 results. ``eager`` holds the errors of eager PyTorch, 0 where it does not fit."""

    workload: Workload
    shape: tuple
    device: str
    dtype: torch.dtype
    inputs: dict[str, torch.Tensor]
    truth: accuracy.Truth
    eager: accuracy.Errors

    def try_out(self, call: Callable, *, strict: bool) -> Tried:
        """Runs an implementation once and compares it; ``strict`` is the rule for our own code."""
        found = accuracy.errors(call, self.inputs, self.truth)
        wrong = accuracy.verdict(found, self.dtype, self.eager if strict else None)
        return {"loss_error": found.loss, "grad_error": found.grad}, wrong, partial(accuracy.timed_step, call, self.inputs)

    def widened(self) -> "PreparedLoss":
        """The same loss of the same values, in float32."""
        constant = tuple(name for name, t in self.inputs.items() if not t.requires_grad)
        return replace(self, dtype=torch.float32, inputs=accuracy.leaves(self.inputs, torch.float32, constant))

    def moves_memory(self, step: Callable) -> bool:
        """A loss writes to no tensor that its next step reads."""
        return False


@dataclass(frozen=True)
class PreparedUpdate:
    """An update with its state before and after it in float64. ``states``: the step of an implementation -> its own state."""

    workload: Update
    shape: tuple
    device: str
    dtype: torch.dtype
    before: State
    truth: State
    eager: dict[str, float]
    states: dict[Step, State] = field(default_factory=dict)

    def try_out(self, bind: Callable[[State], Step], *, strict: bool) -> Tried:
        """Runs an implementation on a state of its own, from which its timed steps go on, and compares the result."""
        state = self.workload.own(self.before)
        step = self.workload.run(bind, state)
        found = accuracy.update_errors(self.before, state, self.truth)
        wrong = accuracy.update_verdict(found, self.before, self.dtype, self.eager if strict else None)
        if not wrong:
            self.states[step] = state
        return {"update_error": max(found.values())}, wrong, step

    def moves_memory(self, step: Step) -> bool:
        """Whether a step puts its result into new memory: the replay of a graph would then repeat the first step."""
        state = self.states[step]

        def places():
            names = [name for name in self.workload.case.written if name in self.before]
            return [t.data_ptr() for name in names for t in accuracy.tensors(state[name])]

        before = places()
        step()
        return places() != before


Prepared = PreparedLoss | PreparedUpdate


def prepare(workload: Workload | Update, shape, options) -> Prepared:
    """Makes the inputs of a workload and their float64 results; ``options`` gives device, dtype and seed."""
    dtype = workload.dtype(options.dtype)
    if isinstance(workload, Update):
        return _prepare_update(workload, shape, dtype, options)
    given = workload.case.inputs(shape, dtype=dtype, device=options.device, seed=options.seed)
    inputs = accuracy.leaves(given, constant=workload.constant_inputs)
    truth = accuracy.truth_of(workload, shape, inputs)
    return PreparedLoss(
        workload, shape, options.device, dtype, inputs, truth, _eager_errors(workload, shape, inputs, truth, options.device)
    )


def _eager_errors(workload: Workload, shape, inputs, truth, device: str) -> accuracy.Errors:
    """Errors of eager PyTorch in the case's dtype, from which the strict rule takes its limit; 0 where eager does not fit."""
    if load("eager").unfit(workload, shape, device)[0]:
        return accuracy.Errors(0.0, 0.0)
    try:
        return accuracy.errors(partial(workload.case.eager, **workload.constants), inputs, truth)
    except torch.OutOfMemoryError:
        pass
    release(device)
    return accuracy.Errors(0.0, 0.0)


def _prepare_update(workload: Update, shape, dtype: torch.dtype, options) -> PreparedUpdate:
    before = workload.case.state(shape, dtype=dtype, device=options.device, seed=options.seed)
    wide = copied(before, dtype=torch.float64)
    eager = partial(workload.case.eager, **workload.constants)
    workload.run(eager, wide)
    truth = {name: wide[name] for name in workload.case.written}
    del wide
    state = workload.own(before)
    workload.run(eager, state)
    return PreparedUpdate(workload, shape, options.device, dtype, before, truth, accuracy.update_errors(before, state, truth))
