"""SIGReg, LeJEPA and VISReg: lightly's numbers, extreme projections, directions, and what is refused."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastssl
from fastssl.functional import lejepa_loss, sigreg, visreg
from fastssl.loss import LeJEPALoss, SIGRegLoss, VISRegLoss
from fastssl.ops.unit_columns import unit_columns
from fastssl.testing import sketched
from fastssl.testing.compare import relative_error
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")


def value_and_gradient(call, z):
    z = z.detach().clone().requires_grad_()
    torch.manual_seed(3)
    loss = call(z)
    return loss.detach(), *torch.autograd.grad(loss, z)


def of_views(criterion):
    return lambda z: criterion(global_proj=z[:2], local_proj=z[2:])


MODULES = {
    "SIGReg": (SIGRegLoss, "lejepa_loss", lambda criterion: criterion, {"knots": 9, "num_vectors": 70}),
    "LeJEPALoss": (LeJEPALoss, "lejepa_loss", of_views, {"lambda_param": 0.3, "sigreg_num_vectors": 70}),
    "VISRegLoss": (VISRegLoss, "visreg_loss", of_views, {"num_slices": 70, "lambda_shape": 2.0, "lambda_center": 0.5}),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_lightlys_after_the_same_seed(name):
    library("lightly")
    ours, module, call, how = MODULES[name]
    theirs = getattr(__import__(f"lightly.loss.{module}", fromlist=[name]), name)
    z = sketched.views((50, 12))["z"] if name != "SIGReg" else torch.randn(2, 2, 50, 12)
    criterion, other = ours(**how), theirs(**how)
    other.load_state_dict(criterion.state_dict())
    wide = theirs(**how).double()
    found, rival = value_and_gradient(call(criterion), z), value_and_gradient(call(other), z)
    for got, eager in zip(found, rival, strict=True):
        torch.testing.assert_close(got, eager, rtol=2e-5, atol=1e-7)
    assert criterion.state_dict().keys() == wide.state_dict().keys()


def test_patched_lightly_computes_with_ours():
    library("lightly")
    import lightly.loss

    with fastssl.patch("lightly"):
        assert lightly.loss.LeJEPALoss is LeJEPALoss and lightly.loss.lejepa_loss.SIGReg is SIGRegLoss
    assert lightly.loss.LeJEPALoss is not LeJEPALoss


def test_what_visreg_returns_of_its_terms_is_what_a_user_writes():
    z, A = sketched.views((40, 9))["z"].double(), torch.randn(9, 30, dtype=torch.float64)
    terms = visreg(z, global_views=2, directions=A, weights=(2.0, 0.5, 3.0), lambda_param=0.7, return_terms=True)
    for got, want in zip(terms[1:], sketched.visreg_terms(z, A, 2), strict=True):
        torch.testing.assert_close(got, want)
    pred, scale, shape, center = terms[1:]
    torch.testing.assert_close(terms.total, 0.3 * pred + 0.7 * (2.0 * scale + 0.5 * shape + 3.0 * center))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.lucky
def test_a_large_projection_has_the_right_phase(size, isa):
    """One column and one direction of length 1, so the projections are exact: sines of large angles are those of float64."""
    z = (size * torch.linspace(0.1, 1.0, 257))[:, None]
    one = torch.ones(1, 1)
    for knots, t_max in ((17, 3.0), (2, 1.0), (40, 8.0)):
        call = lambda z, how=(knots, t_max): sigreg(z, directions=one.to(z.dtype), knots=how[0], t_max=how[1])  # noqa: E731
        found, truth = value_and_gradient(call, z), value_and_gradient(call, z.double())
        assert relative_error(found[0], truth[0]) < 1e-6 and relative_error(found[1], truth[1]) < 5e-6


@pytest.mark.parametrize("size", [1e12, 1e15, 1e16, 1e18, 1e24, 3e37])
def test_projections_without_phases_give_a_finite_loss(size, isa):
    """The means of cosines and sines lie in [-1, 1] whatever the phases."""
    z = size * torch.linspace(1.0, 2.0, 40).view(10, 4)
    most = 10 * sum(2 * 3.0 / 16 * math.exp(-0.5 * t * t) * 5.0 for t in torch.linspace(0, 3, 17))  # (1 + 1)^2 + 1
    found = value_and_gradient(lambda z: sigreg(z, directions=torch.eye(4)), z)
    assert 0 <= found[0] <= most and found[1].isfinite().all()
    infinite = z.clone()
    infinite[3, 1] = torch.inf
    assert sigreg(infinite, directions=torch.eye(4)).isnan()


def test_float32_gradients_are_as_exact_as_those_with_a_sine_for_each_knot():
    z = sketched.embeddings((2, 256, 64))["z"]
    A = sketched.directions(z, 128)
    truth, ours, eager = (
        value_and_gradient(lambda z, call=call: call(z, directions=A.to(z.dtype)), given)
        for call, given in ((sketched.sigreg, z.double()), (sigreg, z), (sketched.sigreg, z))
    )
    assert relative_error(ours[1], truth[1]) <= 2 * relative_error(eager[1], truth[1])


def test_directions_are_unit_columns_that_depend_on_the_seed_alone():
    first, again = (unit_columns(torch.tensor(5), 33, 2000, torch.float64) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(2000, dtype=torch.float64))
    torch.testing.assert_close(unit_columns(torch.tensor(5), 33, 2000, torch.float32).double(), first, rtol=0, atol=3e-6)
    assert first.mean().abs() < 5 / math.sqrt(33 * first.numel())
    spread = first @ first.T / 2000 * 33
    assert (spread - torch.eye(33)).abs().max() < 0.15
    assert not torch.equal(unit_columns(torch.tensor(6), 33, 2000, torch.float64), first)
    torch.testing.assert_close(unit_columns(torch.tensor(5), 33, 7, torch.float64), first[:, :7])


def test_one_seed_is_one_sketch():
    z = torch.randn(2, 20, 6)
    by_number, by_tensor = sigreg(z, seed=4), sigreg(z, seed=torch.tensor([4]))
    assert torch.equal(by_number, by_tensor) and not torch.equal(by_number, sigreg(z, seed=5))
    drawn = [sigreg(z, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn)
    torch.testing.assert_close(sigreg(z, seed=4), (sigreg(z[0], seed=4) + sigreg(z[1], seed=4)) / 2)


@pytest.mark.parametrize(
    "error, words, call",
    [
        (ValueError, r"sigreg: z must have shape \(N, D\) or \(V, N, D\)", lambda z: sigreg(z[0, 0])),
        (TypeError, "sigreg: z must be float32", lambda z: sigreg(z.long())),
        (ValueError, r"sigreg: knots must be in \[2, 1025\), got 1", lambda z: sigreg(z, knots=1)),
        (ValueError, "sigreg: t_max must be above 0", lambda z: sigreg(z, t_max=0.0)),
        (ValueError, r"sigreg: directions must be \(D, S\) with D = 4 of z", lambda z: sigreg(z, directions=torch.ones(5, 2))),
        (TypeError, "z and directions must have the same dtype", lambda z: sigreg(z, directions=torch.ones(4, 2).double())),
        (
            ValueError,
            "sigreg: only one of directions",
            lambda z: sigreg(z, seed=1, directions=torch.ones(4, 2)),
        ),
        (NotImplementedError, "directions must not require", lambda z: sigreg(z, directions=torch.ones(4, 2).requires_grad_())),
        (ValueError, r"lejepa_loss: global_views must be in \[1, 3\)", lambda z: lejepa_loss(z, global_views=3)),
        (ValueError, r"lejepa_loss: lambda_param must be in \[0, 1\]", lambda z: lejepa_loss(z, lambda_param=1.5)),
        (ValueError, r"visreg: z must have shape .* N at least 2", lambda z: visreg(z[:, :1])),
        (TypeError, "visreg: weights must be three numbers", lambda z: visreg(z, weights=1.0)),
        (
            ValueError,
            "local_proj and global_proj must agree",
            lambda z: LeJEPALoss()(local_proj=z, global_proj=z[:, :2]),
        ),
    ],
)
def test_refusals(error, words, call):
    state = torch.get_rng_state()
    with pytest.raises(error, match=words):
        call(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())


def test_flops_are_counted():
    z = torch.randn(2, 8, 4, requires_grad=True)
    for call, products in ((sigreg, 3), (visreg, 2)):
        with FlopCounterMode(display=False) as counter:
            call(z, slices=16, seed=1).backward()
        assert counter.get_total_flops() == products * 2 * z.numel() * 16


def test_the_op_of_sorted_slices_refuses_empty_rows():
    """The public functions refuse them before; the op itself divided by their number."""
    for rows, directions in ((0, 8), (5, 0)):
        with pytest.raises(RuntimeError, match="expected rows and directions"):
            torch.ops.fastssl.sorted_slices(torch.ones(1, rows, 4), torch.ones(4, directions), torch.ones(rows), True)
