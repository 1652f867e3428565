"""One work at one shape, ready for its gate: inputs, float64 truth, and the errors of eager PyTorch in the same dtype."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks.core import accuracy
from benchmarks.core.workloads import Update, Work
from benchmarks.peers import load
from fastssl.testing.updates import State, Step, copied

#: Errors for the entry, what is wrong ("" for nothing), and the turn to time.
Tried = tuple[dict[str, float], str, Callable[[], object]]


def release(device: str) -> None:
    """Hands cached device memory back, after an implementation did not fit."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class PreparedLoss:
    """``eager`` holds the errors of eager PyTorch, zero where it does not fit."""

    work: Work
    shape: tuple
    device: str
    dtype: torch.dtype
    inputs: dict[str, torch.Tensor]
    truth: accuracy.Truth
    eager: accuracy.Errors

    def try_out(self, call: Callable, *, strict: bool) -> Tried:
        found = accuracy.errors(call, self.inputs, self.truth)
        wrong = accuracy.verdict(found, self.dtype, self.eager if strict else None)
        return {"loss_error": found.loss, "grad_error": found.grad}, wrong, partial(accuracy.turn, call, self.inputs)

    def moves_memory(self, turn: Callable) -> bool:
        return False


@dataclass(frozen=True)
class PreparedUpdate:
    """``states`` holds the state of each implementation that was tried, by its turn."""

    work: Update
    shape: tuple
    device: str
    dtype: torch.dtype
    before: State
    truth: State
    eager: dict[str, float]
    states: dict[Step, State] = field(default_factory=dict)

    def try_out(self, bind: Callable[[State], Step], *, strict: bool) -> Tried:
        """Every implementation works on a state of its own, and goes on from there in its timed turns."""
        state = self.work.own(self.before)
        turn = self.work.run(bind, state)
        found = accuracy.update_errors(self.before, state, self.truth)
        wrong = accuracy.update_verdict(found, self.before, self.dtype, self.eager if strict else None)
        if not wrong:
            self.states[turn] = state
        return {"update_error": max(found.values())}, wrong, turn

    def moves_memory(self, turn: Step) -> bool:
        """Whether a step puts its result into new memory: the replay of a graph would then repeat the first step."""
        state = self.states[turn]

        def places():
            names = [name for name in self.work.case.written if name in self.before]
            return [t.data_ptr() for name in names for t in accuracy.tensors(state[name])]

        before = places()
        turn()
        return places() != before


Prepared = PreparedLoss | PreparedUpdate


def prepare(work: Work | Update, shape, options) -> Prepared:
    dtype = work.dtype(options.dtype)
    if isinstance(work, Update):
        return _prepare_update(work, shape, dtype, options)
    given = work.case.inputs(shape, dtype=dtype, device=options.device, seed=options.seed)
    inputs = accuracy.leaves(given, constant=work.constant_inputs)
    truth = accuracy.truth_of(work, shape, inputs)
    return PreparedLoss(
        work, shape, options.device, dtype, inputs, truth, _eager_errors(work, shape, inputs, truth, options.device)
    )


def _eager_errors(work: Work, shape, inputs, truth, device: str) -> accuracy.Errors:
    """Errors of eager PyTorch in the case's dtype, the yardstick of the strict rule; zero where eager does not fit."""
    if load("eager").unfit(work, shape, device)[0]:
        return accuracy.Errors(0.0, 0.0)
    try:
        return accuracy.errors(partial(work.case.eager, **work.constants), inputs, truth)
    except torch.OutOfMemoryError:
        pass
    release(device)
    return accuracy.Errors(0.0, 0.0)


def _prepare_update(work: Update, shape, dtype: torch.dtype, options) -> PreparedUpdate:
    before = work.case.state(shape, dtype=dtype, device=options.device, seed=options.seed)
    wide = copied(before, dtype=torch.float64)
    eager = partial(work.case.eager, **work.constants)
    work.run(eager, wide)
    truth = {name: wide[name] for name in work.case.written}
    del wide
    state = work.own(before)
    work.run(eager, state)
    return PreparedUpdate(work, shape, options.device, dtype, before, truth, accuracy.update_errors(before, state, truth))
