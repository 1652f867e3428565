"""What holds for every public function that writes nothing in place, by the legal calls of the fuzz cases.

Forward-mode differentiation, one argument at a time, is refused by name or equal to the reverse mode. Tensors on the meta device
are refused by name or give results of the right shapes. Numbers may be NumPy's.
"""

from functools import partial

import numpy
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from fastssl.compat import lightly
from fastssl.loss import DCLWLoss, NegativeCosineSimilarity, NTXentLoss
from fastssl.momentum import EMA, MemoryBank, MoCoQueue
from fastssl.optim import LARS, AdamW
from tests.fuzz.cases import CASES
from tests.fuzz.table import Case, Maker
from tests.fuzz.values import tensors, walk

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]


def legal(case: Case, number: int) -> dict:
    """Arguments in float64 without gradients, the same ones each time."""
    arguments = case.make(Maker(case.name, "forward mode", number))
    return walk(arguments, lambda t: t.detach().double() if t.is_floating_point() else t)


def called(case: Case, number: int, place: int, change) -> list[torch.Tensor]:
    """Floating results of a call whose argument tensor number ``place`` is changed."""
    arguments = legal(case, number)
    chosen = list(tensors(arguments))[place]
    torch.default_generator.manual_seed(5)
    found = case.call(case.function, walk(arguments, lambda t: change(t) if t is chosen else t))
    return [t for t in tensors(found) if t.is_floating_point()]


def compare(case: Case, number: int, place: int) -> bool:
    """Whether there was a derivative to compare; fails where it is wrong or lost."""
    leaf = None

    def variable(t):
        nonlocal leaf
        leaf = t.clone().requires_grad_()
        return leaf

    def dual(t):
        return forward_ad.make_dual(t, torch.ones_like(t))

    try:
        truth = [t for t in called(case, number, place, variable) if t.requires_grad]
    except NotImplementedError:  # an argument that must be a constant
        truth = []
    with forward_ad.dual_level():
        try:
            found = [forward_ad.unpack_dual(t).tangent for t in called(case, number, place, dual)]
        except NotImplementedError as error:
            assert str(error).startswith(f"{case.name}: "), error
            return False
    if not truth:
        return False
    (gradient,) = torch.autograd.grad(sum(t.sum() for t in truth), leaf, allow_unused=True)
    want = 0.0 if gradient is None else gradient.sum().item()
    got = sum(t.sum().item() for t in found if t is not None)
    assert got == pytest.approx(want, rel=1e-6, abs=1e-9), (number, place)
    return True


every_function = pytest.mark.parametrize("case", [case for case in CASES if not case.writes], ids=lambda case: case.name)


@every_function
def test_forward_mode_is_refused_or_right(case):
    for number in range(4):
        for place, t in enumerate(tensors(legal(case, number))):
            if t.is_floating_point():
                compare(case, number, place)


def test_a_lost_tangent_is_seen():
    def losing(x):
        return (2.0 * (x if x.requires_grad else forward_ad.unpack_dual(x).primal)).sum()

    kept, lost = (Case("double", function, lambda m: {"x": m.rows(3)}) for function in (lambda x: (2.0 * x).sum(), losing))
    assert compare(kept, 0, 0)
    with pytest.raises(AssertionError, match="assert 0 == 6"):
        compare(lost, 0, 0)


@every_function
def test_meta_tensors_have_shapes_or_are_refused(case):
    for number in range(4):
        torch.default_generator.manual_seed(5)
        want = case.call(case.function, legal(case, number))
        if next(tensors(legal(case, number)), None) is None:
            continue
        try:
            found = case.call(case.function, walk(legal(case, number), lambda t: t.to("meta")))
        except (NotImplementedError, TypeError, ValueError) as error:
            assert str(error).startswith(f"{case.name}: "), error
            continue
        for there, here in zip(tensors(found), tensors(want), strict=True):
            assert (there.shape, there.dtype) == (here.shape, here.dtype) and there.is_meta


def of_numpy(value):
    """The numbers in an argument as NumPy's scalars, as an array or a config gives them, floats rounded to float32."""
    if type(value) in (tuple, list):
        return type(value)(map(of_numpy, value))
    if isinstance(value, int) and not isinstance(value, bool):
        kinds = (numpy.int8, numpy.uint8, numpy.int16, numpy.int32, numpy.int64)
        return next(kind for kind in kinds if numpy.iinfo(kind).min <= value <= numpy.iinfo(kind).max)(value)
    return numpy.bool_(value) if isinstance(value, bool) else numpy.float32(value) if isinstance(value, float) else value


def of_python(value):
    """What ``of_numpy`` gave, as Python's numbers of the same values."""
    if type(value) in (tuple, list):
        return type(value)(map(of_python, value))
    return value.item() if isinstance(value, numpy.generic) else value


@pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's whole numbers overflow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numbers_may_be_numpys(case):
    for number in range(6):
        results = []
        for change in (of_python, lambda value: value):
            arguments = legal(case, number)
            torch.default_generator.manual_seed(5)
            found = case.call(case.function, {name: change(of_numpy(value)) for name, value in arguments.items()})
            results.append((*tensors(found), *(t for name in case.writes for t in tensors(arguments.get(name)))))
        for plain, numpys in zip(*results, strict=True):
            torch.testing.assert_close(numpys, plain, rtol=0, atol=0, equal_nan=True)


CLASSES = {
    "NTXentLoss": (NTXentLoss, {"temperature": 0.25, "memory_bank_size": (8, 4)}),
    "NTXentLoss of K": (NTXentLoss, {"temperature": 0.25, "memory_bank_size": 8}),
    "DCLWLoss": (DCLWLoss, {"temperature": 0.25, "sigma": 0.5}),
    "NegativeCosineSimilarity": (NegativeCosineSimilarity, {"dim": 1, "eps": 0.125}),
    "MoCoQueue": (MoCoQueue, {"dim": 4, "size": 8, "labels": True}),
    "MemoryBank": (MemoryBank, {"size": 8, "dim": 4}),
    "lightly MemoryBankModule": (lightly.MemoryBankModule, {"size": (8, 4)}),
    "EMA": (partial(EMA, nn.Linear(2, 2)), {"momentum": 0.75, "seed": 3}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_of_a_constructor_may_be_numpys(name):
    make, options = CLASSES[name]
    torch.manual_seed(0)
    plain = make(**options)
    torch.manual_seed(0)
    numpys = make(**{name: of_numpy(value) for name, value in options.items()})
    for ours, theirs in zip(numpys.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cls, options", [(AdamW, {}), (LARS, {"nesterov": True}), (partial(LARS, form="larc"), {"clip": True})])
def test_rates_of_an_optimizer_may_be_numpys(cls, options):
    options |= {"lr": 0.3, "weight_decay": 0.1, "eps": 1e-6} | ({} if cls is AdamW else {"momentum": 0.9})
    results = []
    for change in (of_python, lambda value: value):
        p = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = cls([p], **{name: change(of_numpy(value)) for name, value in options.items()})
        for step in range(3):  # as DINO's loop writes its schedules
            optimizer.param_groups[0].update(lr=change(of_numpy(0.1 * step)), weight_decay=change(numpy.float64(0.2 * step)))
            p.grad = torch.tensor([0.5, -2.0])
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
