"""Barlow Twins, VICReg, Gram anchoring and CKA beside lightly, in both forms, where numbers are difficult, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.peers import ready_torchvision
from fastssl.functional import barlow_twins, cka, gram_loss, vicreg
from fastssl.loss import BarlowTwinsLoss, PatchKernelAlignmentLoss, VICRegLoss
from fastssl.ops import gram, squared_products
from fastssl.testing import redundancy as plain
from fastssl.testing.compare import assert_no_worse, relative_error

FORMS = ("gram", "covariance")
BOTH = pytest.mark.parametrize(
    "ours, eager", [(barlow_twins, plain.barlow_twins), (vicreg, plain.vicreg)], ids=["barlow", "vicreg"]
)


def views(*shape, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64) + shift
    return [base + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def run(call, *sides, **how):
    sides = [t.detach().clone().requires_grad_() for t in sides]
    loss = call(*sides, **how)
    return [loss.detach(), *torch.autograd.grad(loss, sides)]


def worst(found, wanted) -> float:
    return max(map(relative_error, found, wanted))


@pytest.fixture
def lightly():
    ready_torchvision()
    return pytest.importorskip("lightly.loss")


@pytest.mark.parametrize("shape", [(8, 5), (6, 20), (7, 3, 2, 12)], ids=str)
def test_modules_are_lightlys(lightly, shape):
    sides = views(*shape)
    pairs = [(VICRegLoss(10.0, 5.0, 2.0, eps=1e-3), lightly.VICRegLoss(10.0, 5.0, 2.0, eps=1e-3))]
    pairs += [(BarlowTwinsLoss(0.1), lightly.BarlowTwinsLoss(0.1))] if len(shape) == 2 else []
    for ours, theirs in pairs:
        assert worst(run(ours, *sides), run(theirs, *sides)) < 1e-12


def test_cka_is_lightlys_patch_kernel_alignment(lightly):
    student, teacher = views(4, 9, 5, seed=1)
    theirs = lightly.PatchKernelAlignmentLoss()
    for mask in (
        None,
        torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.4,
        torch.arange(9) > torch.arange(4)[:, None],
    ):
        wanted = run(lambda s: theirs(s, teacher, mask=mask), student)  # noqa: B023
        for form in ("auto", *FORMS):
            found = run(lambda s: cka(s, teacher, mask=mask, form=form), student)  # noqa: B023
            assert worst(found, wanted) < 1e-6, form  # theirs is float32 whatever it is given


def test_the_module_draws_the_patches_that_lightlys_draws(lightly):
    student, teacher = (t.float() for t in views(4, 9, 5, seed=9))
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.4
    for given in (None, mask):
        found = []
        for module in (PatchKernelAlignmentLoss(4), lightly.PatchKernelAlignmentLoss(4)):
            torch.manual_seed(3)
            found.append(run(lambda s: module(s, teacher, mask=given), student))  # noqa: B023
        assert worst(*found) < 2e-6
    with pytest.raises(ValueError, match="max_tokens must be in"):
        PatchKernelAlignmentLoss(1)
    with pytest.raises(ValueError, match="cka: student and teacher must have the same shape"):
        PatchKernelAlignmentLoss(4)(student, teacher[:2])


@BOTH
@pytest.mark.parametrize("shape", [(2, 2), (6, 20), (20, 6)], ids=str)
def test_both_forms_are_the_same_loss(ours, eager, shape):
    """In float64 to its rounding, in float32 no worse than eager, and each stores its own matrices alone."""
    sides = views(*shape, seed=3)
    truth, halved = run(eager, *sides), [t.float() for t in sides]
    in_float32 = run(eager, *halved)
    for form in FORMS:
        assert worst(run(ours, *sides, form=form), truth) < 1e-11
        for got, other, right in zip(run(ours, *halved, form=form), in_float32, truth, strict=True):
            assert_no_worse(form, got, other, right, torch.float32, float(right.norm()))


@BOTH
def test_sixteen_bits_are_standardised_in_float32(ours, eager):
    """Against float64 of the same bfloat16 rows: eager under autocast rounds the standardised rows and the products."""
    sides = [t.bfloat16() for t in views(12, 64, seed=4)]
    truth = run(eager, *(t.double() for t in sides))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = relative_error(eager(*sides).double(), truth)
    for form in FORMS:
        assert relative_error(ours(*sides, form=form).double(), truth) < 2e-6 < 1e-4 < theirs


def test_columns_far_from_zero():
    sides = [t.float() for t in views(9, 40, seed=5, shift=3000.0)]
    truth = run(plain.barlow_twins, *(t.double() for t in sides))
    theirs = run(plain.barlow_twins, *sides)
    for got, other, right in zip(run(barlow_twins, *sides), theirs, truth, strict=True):
        assert_no_worse("shifted", got, other, right, torch.float32)


def test_the_rule_of_the_forms():
    assert squared_products.gram_is_cheaper(256, 8192) and squared_products.gram_is_cheaper(5, 7)
    assert not squared_products.gram_is_cheaper(6, 8) and not squared_products.gram_is_cheaper(2, 1)
    for form, sizes in (("gram", {(1, 6, 6)}), ("covariance", {(1, 20, 20), (0,)})):
        *_, a, b = squared_products._fwd(*(t[:, None] for t in views(6, 20)), form == "gram")
        assert {tuple(a.shape), tuple(b.shape)} == sizes


def test_info_states_the_rule():
    from fastssl.info import report

    assert "N x N matrices where N < 3/4 D" in report()


def test_flops_are_counted():
    """In products of 2 x 8 x 8 x 16 for N = 8 rows of width 16: Barlow Twins has two sides and two products of each."""
    from torch.utils.flop_counter import FlopCounterMode

    z, y = torch.randn(8, 16), torch.randn(8, 16)
    calls = {
        "barlow": (4, lambda x: barlow_twins(x, y, form="gram")),
        "barlow, D x D": (6, lambda x: barlow_twins(x, y, form="covariance")),
        "vicreg": (4, lambda x: vicreg(x, y, form="gram")),
        "vicreg, D x D": (8, lambda x: vicreg(x, y, form="covariance")),
        "gram_loss": (3, lambda x: gram_loss(x, y)),
        "cka": (3, lambda x: cka(x, y, form="gram")),
        "cka, D x D": (10, lambda x: cka(x, y, form="covariance")),
    }
    for name, (products, call) in calls.items():
        with FlopCounterMode(display=False) as counter:
            call(z.clone().requires_grad_()).backward()
        assert counter.get_total_flops() == products * 2 * 8 * 8 * 16, (name, counter.get_total_flops() / 2048)


@pytest.mark.parametrize("removed", ["neither", "remove_negative", "remove_only_teacher_negative"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gram_loss_by_squares_and_by_tiles(removed, normalize, monkeypatch):
    """Many images at once, or the tiles of one triangle of a large matrix."""
    student, teacher = views(3, 9, 5, seed=6)
    how = {"normalize": normalize} | ({} if removed == "neither" else {removed: True})
    for at_once in (1 << 20, 100, 30):
        monkeypatch.setitem(gram.AT_ONCE, "cpu", at_once)
        monkeypatch.setattr(gram, "SIDE", 4)
        for image_level in (True, False):
            call = lambda loss: run(lambda s: loss(s, teacher, image_level=image_level, **how), student)  # noqa: B023, E731
            assert worst(call(gram_loss), call(plain.gram_loss)) < 1e-12


def test_gram_loss_where_both_sides_agree():
    """Nothing cancels: the loss of equal sides is 0, and that of a small difference has all its digits."""
    student = F.normalize(torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(7)), dim=2)
    assert gram_loss(student, student) == 0
    teacher = student + 1e-4 * torch.randn(student.shape, generator=torch.Generator().manual_seed(8))
    truth = run(lambda s: plain.gram_loss(s, teacher.double()), student.double())
    found = run(lambda s: gram_loss(s, teacher), student)
    assert worst(found, truth) < 2e-2  # the entries have 7 digits, of which the difference leaves 3
    eager = run(lambda s: plain.gram_loss(s, teacher), student)
    for got, other, right in zip(found, eager, truth, strict=True):
        assert relative_error(got, right) <= 2 * relative_error(other, right) + 1e-4


def test_an_image_of_one_row_and_no_image():
    one = torch.randn(2, 1, 4, requires_grad=True)
    assert cka(one, torch.randn(2, 1, 4)) == 0 and gram_loss(one, torch.randn(2, 1, 4)).item() < 1e-12
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert cka(torch.randn(2, 3, 4), torch.randn(2, 3, 4), mask=mask) == 0


REFUSED = {
    "at least 2 rows": lambda z, v: barlow_twins(z[:1], z[:1]),
    "same shape": lambda z, v: barlow_twins(z, z[:, :2]),
    r"shape \(B, D\)": lambda z, v: barlow_twins(v, v),
    "form must be one of": lambda z, v: vicreg(z, z, form="both"),
    "eps must be at least 0": lambda z, v: vicreg(z, z, eps=-1.0),
    "eps must be above 0": lambda z, v: barlow_twins(z, z, eps=0.0),
    "mu_param must be finite": lambda z, v: vicreg(z, z, mu_param=float("nan")),
    "same dtype": lambda z, v: vicreg(z, z.double()),
    "must not both be True": lambda z, v: gram_loss(v, v, remove_negative=True, remove_only_teacher_negative=True),
    "same shape but for the width": lambda z, v: gram_loss(v, v[:1]),
    r"mask must have shape \(2, 3\)": lambda z, v: cka(v, v, mask=torch.zeros(2, 4, dtype=torch.bool)),
    "mask must be bool": lambda z, v: cka(v, v, mask=torch.zeros(2, 3)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_name_the_argument(words):
    with pytest.raises((TypeError, ValueError), match=words):
        REFUSED[words](torch.randn(4, 3), torch.randn(2, 3, 3))


@pytest.mark.parametrize("module", [BarlowTwinsLoss, VICRegLoss])
def test_modules_refuse_at_once(module):
    with pytest.raises(TypeError, match="gather_distributed must be True or False"):
        module(gather_distributed="yes")
    with pytest.raises(TypeError, match="lambda_param must be a number"):
        module("0.1")
