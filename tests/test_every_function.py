"""What holds for every public function that writes nothing in place, by the legal calls of the fuzz's rows.

Forward-mode differentiation, one argument at a time, is refused by name or equal to the reverse mode. Tensors on the meta device
are refused by name or give results of the right shapes.
"""

import pytest
import torch
from fuzz.rows import ROWS
from fuzz.table import Maker, Row
from fuzz.values import tensors, walk
from torch.autograd import forward_ad

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]


def legal(row: Row, number: int) -> dict:
    """Arguments in float64 without gradients, the same ones each time."""
    arguments = row.make(Maker(row.name, "forward mode", number))
    return walk(arguments, lambda t: t.detach().double() if t.is_floating_point() else t)


def called(row: Row, number: int, place: int, change) -> list[torch.Tensor]:
    """Floating results of a call whose argument tensor number ``place`` is changed."""
    arguments = legal(row, number)
    chosen = list(tensors(arguments))[place]
    torch.default_generator.manual_seed(5)
    found = row.call(row.function, walk(arguments, lambda t: change(t) if t is chosen else t))
    return [t for t in tensors(found) if t.is_floating_point()]


def compare(row: Row, number: int, place: int) -> bool:
    """Whether there was a derivative to compare; fails where it is wrong or lost."""
    leaf = None

    def variable(t):
        nonlocal leaf
        leaf = t.clone().requires_grad_()
        return leaf

    def dual(t):
        return forward_ad.make_dual(t, torch.ones_like(t))

    try:
        truth = [t for t in called(row, number, place, variable) if t.requires_grad]
    except NotImplementedError:  # an argument that must be a constant
        truth = []
    with forward_ad.dual_level():
        try:
            found = [forward_ad.unpack_dual(t).tangent for t in called(row, number, place, dual)]
        except NotImplementedError as error:
            assert str(error).startswith(f"{row.name}: "), error
            return False
    if not truth:
        return False
    (gradient,) = torch.autograd.grad(sum(t.sum() for t in truth), leaf, allow_unused=True)
    want = 0.0 if gradient is None else gradient.sum().item()
    got = sum(t.sum().item() for t in found if t is not None)
    assert got == pytest.approx(want, rel=1e-6, abs=1e-9), (number, place)
    return True


every_function = pytest.mark.parametrize("row", [row for row in ROWS if not row.writes], ids=lambda row: row.name)


@every_function
def test_forward_mode_is_refused_or_right(row):
    for number in range(4):
        for place, t in enumerate(tensors(legal(row, number))):
            if t.is_floating_point():
                compare(row, number, place)


def test_a_lost_tangent_is_seen():
    def losing(x):
        return (2.0 * (x if x.requires_grad else forward_ad.unpack_dual(x).primal)).sum()

    kept, lost = (Row("double", function, lambda m: {"x": m.rows(3)}) for function in (lambda x: (2.0 * x).sum(), losing))
    assert compare(kept, 0, 0)
    with pytest.raises(AssertionError, match="assert 0 == 6"):
        compare(lost, 0, 0)


@every_function
def test_meta_tensors_have_shapes_or_are_refused(row):
    for number in range(4):
        torch.default_generator.manual_seed(5)
        want = row.call(row.function, legal(row, number))
        if next(tensors(legal(row, number)), None) is None:
            continue
        try:
            found = row.call(row.function, walk(legal(row, number), lambda t: t.to("meta")))
        except (NotImplementedError, TypeError, ValueError) as error:
            assert str(error).startswith(f"{row.name}: "), error
            continue
        for there, here in zip(tensors(found), tensors(want), strict=True):
            assert (there.shape, there.dtype) == (here.shape, here.dtype) and there.is_meta
