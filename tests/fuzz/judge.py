"""Whether one call was served or refused as it should be: what the fuzz holds against a function."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastssl.testing.compare import FLOOR, relative_error

from . import odd
from .from_bytes import Bytes
from .table import Case, Maker
from .values import changed, plain, state, tensors, usual, walk, words

REFUSALS = (TypeError, ValueError, NotImplementedError)
MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc|Storage size calculation overflowed")
SLACK = 4.0  # times eager's own error, or that of one rounding of the inputs
FLOORS = 20.0  # times the floor of the comparison of the tests


@dataclass
class Verdict:
    """``kind``: "served", "refused" or "memory"; ``judged``: compared with a truth. No faults: all is well."""

    kind: str
    faults: list[tuple[str, str]] = field(default_factory=list)
    judged: bool = False


def make(case: Case, seed: int | bytes, number: int) -> tuple[dict, list[str]]:
    """The arguments of a call and how they were spoiled, the same ones each time. Bytes in place of a seed choose all of it."""
    m = Bytes(seed) if isinstance(seed, bytes) else Maker(case.name, seed, number)
    arguments = case.make(m)
    spoiled = list(m.spoils)
    for _ in range(m.choice((0, 1, 1, 1, 1, 2))):
        before = dict(arguments)
        try:
            spoiled.append(odd.spoil(m, arguments))
        except Exception:  # torch has no such tensor
            arguments = before
    return arguments, spoiled


def run(case: Case, arguments: dict):
    torch.default_generator.manual_seed(5)
    return case.call(case.function, arguments)


def judge(case: Case, seed: int | bytes, number: int) -> Verdict:
    arguments, spoiled = make(case, seed, number)
    before, random_before = state(arguments), None
    torch.default_generator.manual_seed(5)
    random_before = torch.get_rng_state()
    try:
        found = run(case, arguments)
    except Exception as error:
        torch_state = torch.get_rng_state()
        return _refusal(case, arguments, before, error, spoiled, not torch.equal(random_before, torch_state))
    verdict = Verdict("served")
    generators = tuple(name for name, value in arguments.items() if isinstance(value, torch.Generator))
    after = state(arguments)
    if moved := changed(before, after, _written(case, arguments) + generators):
        verdict.faults.append(("changed", f"the call changed {', '.join(moved)}"))
    _twice(case, seed, number, found, after, verdict)
    if all(usual(t) for t in tensors(found)):
        _truth(case, seed, number, arguments, spoiled, verdict)
    if number % 4 == 0:  # they cost the most
        _fake(case, seed, number, found, verdict)
    return verdict


def _written(case: Case, arguments: dict) -> tuple[str, ...]:
    """Names of the arguments that the function writes, and of those that hold the memory of one of the same tensors."""
    targets = {_memory(t) for name in case.writes for t in tensors(arguments.get(name))}
    return case.writes + tuple(name for name, value in arguments.items() if any(_memory(t) in targets for t in tensors(value)))


def _memory(t: Tensor) -> int:
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, nested
        return id(t)


def _refusal(case: Case, arguments: dict, before: dict, error: Exception, spoiled: list[str], drew: bool) -> Verdict:
    verdict = Verdict("refused")
    said, kind = str(error), type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(said)):
        return Verdict("memory")
    short = f"{kind}: {said.splitlines()[0][:220] if said else ''}"
    if any(name in how and callable(arguments[name]) for how in spoiled for name in case.through):
        pass
    elif not isinstance(error, REFUSALS):
        verdict.faults.append(("exception", short))
    elif not said.startswith(f"{case.name}: "):
        verdict.faults.append(("words", f"does not begin with the function's name: {short}"))
    elif not any(re.search(rf"\b{re.escape(name)}\b", said[len(case.name) :]) for name in (*arguments, *case.names)):
        verdict.faults.append(("words", f"names no argument: {short}"))
    elif not spoiled:
        verdict.faults.append(("refused", f"a legal call: {short}"))
    if moved := changed(before, state(arguments)):
        verdict.faults.append(("changed", f"a refused call changed {', '.join(moved)}"))
    if drew:
        verdict.faults.append(("changed", "a refused call drew random numbers"))
    return verdict


def _twice(case: Case, seed: int | bytes, number: int, found, after: dict, verdict: Verdict) -> None:
    arguments, _ = make(case, seed, number)
    try:
        again = run(case, arguments)
    except Exception as error:
        verdict.faults.append(("twice", f"the second call raised {type(error).__name__}: {str(error)[:160]}"))
        return
    if [state(t)[-1] for t in tensors(found)] != [state(t)[-1] for t in tensors(again)]:
        verdict.faults.append(("twice", "the second call gave another result"))
    if moved := [name for name in changed(after, state(arguments)) if name in case.writes]:
        verdict.faults.append(("twice", f"the second call wrote something else to {', '.join(moved)}"))


# --- against the truth -------------------------------------------------------------------------------------------------------


def _results(case: Case, found, arguments: dict) -> list[Tensor]:
    seen = found if case.seen is None else case.seen(found, arguments)
    written = [arguments.get(name) for name in case.writes]
    return _each(seen) + _each(written)


def _each(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for part in value for t in _each(part)]
    return []


def _gradients(results: list[Tensor], arguments: dict) -> list[Tensor | None]:
    """Of results in a fixed direction, for each tensor of the arguments that wants one."""
    wanted = [t for t in tensors(arguments) if t.requires_grad]
    outs = [t for t in results if t.requires_grad]
    if not wanted or not outs:
        return [None] * len(wanted)
    given = [torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64).to(t.dtype).view(t.shape) for t in outs]
    return list(torch.autograd.grad(outs, wanted, given, allow_unused=True))


def _evaluate(case: Case, arguments: dict, function) -> tuple[list[Tensor], list[Tensor | None]]:
    torch.default_generator.manual_seed(5)
    results = _results(case, case.call(function, arguments) if function is case.function else function(**arguments), arguments)
    return results, _gradients([t for t in results if t.is_floating_point()], {} if case.writes else arguments)


def _truth(case: Case, seed: int | bytes, number: int, arguments: dict, spoiled: list[str], verdict: Verdict) -> None:
    if (
        case.truth is None
        or not all(usual(t) for t in tensors(arguments))
        or any(word in how for how in spoiled for word in case.rough)
    ):
        return
    fresh, _ = make(case, seed, number)
    try:
        ours = _evaluate(case, fresh, case.function)
    except Exception as error:
        verdict.faults.append(("gradient", f"{type(error).__name__}: {str(error)[:200]}"))
        return
    again, _ = make(case, seed, number)
    try:
        truth = _evaluate(case, plain(again, torch.float64), case.truth)
    except Exception as error:
        verdict.faults.append(("truth", f"the truth refuses what was served: {type(error).__name__}: {str(error)[:160]}"))
        return
    verdict.judged = True
    if len(ours[0]) != len(truth[0]):
        verdict.faults.append(("wrong", f"{len(ours[0])} results, not {len(truth[0])}"))
        return
    dtypes = [t.dtype for t in tensors(again) if t.is_floating_point()] or [torch.float32]
    floor = max(FLOOR.get(dtype, 1e-6) for dtype in dtypes)
    others = _others(case, again, number)
    # where the result itself is not finite its gradients are nobody's business; inf in may be NaN out
    finite, given = _finite(truth[0]), _finite(tensors(again))
    strict = given or any(bool(t.detach().double().isnan().any()) for t in tensors(again) if t.is_floating_point())
    # 16-bit rows have 16-bit gradients: those of an odd temperature overflow on their way
    steep = max(FLOOR.get(dtype, 0.0) for dtype in dtypes) >= 1e-3 and any("temperature" in how for how in spoiled)
    for part, what in ((0, "result"), (1, "gradient"))[: 1 + (finite and not steep)]:
        for at, (got, right) in enumerate(zip(ours[part], truth[part], strict=True)):
            rivals = [other[part][at] for other in others if other is not None and at < len(other[part])]
            if wrong := _wrong(got, right, rivals, floor, strict=strict and part == 0, given=given):
                verdict.faults.append(("wrong", f"{what} {at}: {wrong}"))


def _finite(values: Iterable[Tensor]) -> bool:
    return all(bool(t.detach().double().isfinite().all()) for t in values if t.is_floating_point())


def _others(case: Case, arguments: dict, number: int) -> list:
    """The truth in the dtype of the call, and with inputs moved by one rounding: errors that no one can avoid."""
    noise = [torch.Generator().manual_seed(number), torch.Generator().manual_seed(number + 99)]
    made = []
    for inputs in (plain(arguments), *(plain(arguments, torch.float64, generator) for generator in noise)):
        try:
            made.append(_evaluate(case, inputs, case.truth))
        except Exception:
            made.append(None)
    return made


def _wrong(got: Tensor | None, right: Tensor | None, rivals: list, floor: float, strict: bool, given: bool) -> str:
    """Empty where ``got`` is right. ``strict``: what is not finite must not look finite; ``given``: the inputs are."""
    if got is None or right is None:
        other = right if got is None else got
        return "" if other is None or not bool((other != 0).any()) else f"{words(got)} in place of {words(right)}"
    if got.shape != right.shape:
        return f"shape {tuple(got.shape)} in place of {tuple(right.shape)}"
    got, right = got.detach().as_subclass(Tensor), right.detach()
    if right.is_complex():
        got, right, rivals = torch.view_as_real(got), torch.view_as_real(right), []
    if not got.is_floating_point():
        return "" if torch.equal(got.to(right.dtype), right) else f"{words(got)} in place of {words(right)}"
    rivals = [t.detach().double() for t in rivals if t is not None and t.shape == right.shape]
    reachable = right.to(got.dtype).isfinite() & right.isfinite()
    for rival in rivals:
        reachable &= rival.isfinite()
    lost = reachable & ~got.isfinite()
    if given and bool(lost.any()):
        return f"{int(lost.sum())} of {got.numel()} not finite: {got[lost][:2].tolist()} in place of {right[lost][:2].tolist()}"
    unsure = torch.stack([rival.isfinite() for rival in rivals]).any(0) if rivals else torch.zeros_like(reachable)
    hidden = ~right.isfinite() & got.isfinite() & ~unsure
    if strict and bool(hidden.any()):
        return f"{int(hidden.sum())} of {got.numel()} finite: {got[hidden][:2].tolist()} in place of {right[hidden][:2].tolist()}"
    both = reachable & got.isfinite()
    if not bool(both.any()):
        return ""
    ours, right = got[both].double(), right[both].double()
    rounding = FLOORS * torch.finfo(got.dtype).eps * right.numel() ** 0.5  # of terms of size 1 that cancel
    size = max(1.0, float(right.abs().max()))  # squares of 1e300 are infinite
    error = relative_error(ours / size, right / size)
    allowed = max([relative_error(rival[both] / size, right / size) for rival in rivals], default=0.0)
    limit = SLACK * allowed + FLOORS * floor
    if error <= limit or float((ours - right).norm()) <= rounding:
        return ""
    return f"error {error:.2e} over {limit:.2e}: {ours[:3].tolist()}, right {right[:3].tolist()}"


# --- under fake tensors ------------------------------------------------------------------------------------------------------


def _fake(case: Case, seed: int | bytes, number: int, found, verdict: Verdict) -> None:
    """Shapes and dtypes of fake results are those of the real ones; a result without a tensor argument is fake all the same."""
    arguments, _ = make(case, seed, number)
    given = list(tensors(arguments))
    if not all(usual(t) and not t.is_inference() for t in given) or any(type(t) not in (Tensor, torch.nn.Parameter) for t in given):
        return
    mode = FakeTensorMode()
    try:
        arguments = walk(arguments, mode.from_tensor)
    except Exception:  # a tensor that has no fake one
        return
    try:
        with mode:
            fake = run(case, arguments)
    except NotImplementedError as error:
        if not str(error).startswith(f"{case.name}: "):
            verdict.faults.append(("fake", f"NotImplementedError: {str(error)[:200]}"))
        return
    except Exception as error:
        verdict.faults.append(("fake", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:220]}"))
        return
    got, right = list(tensors(fake)), list(tensors(found))
    if any(not isinstance(t, FakeTensor) for t in got):
        verdict.faults.append(("fake", "the result under a fake mode has data"))
    mine, real = ([(tuple(t.shape), t.dtype, t.device.type) for t in side] for side in (got, right))
    if mine != real:
        verdict.faults.append(("fake", f"{mine} in place of {real}"[:220]))
