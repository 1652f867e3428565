"""KoLeo against lightly's, its neighbours against a search by hand, and what it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import ready_torchvision
from fastssl.distributed import neighbours as limits
from fastssl.functional import koleo
from fastssl.loss import KoLeoLoss
from fastssl.loss.parts import neighbours
from fastssl.testing.latents import koleo as eager
from fastssl.testing.latents import rows


def value_and_gradient(call, z):
    z = z.clone().requires_grad_()
    loss = call(z)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.fixture(scope="module")
def lightly():
    ready_torchvision()
    return pytest.importorskip("lightly.loss")


@pytest.mark.parametrize("how", [{}, {"p": 1, "eps": 1e-4}], ids=str)
def test_lightlys_loss(lightly, how):
    z = rows((64, 32))["z"]
    torch.testing.assert_close(
        value_and_gradient(KoLeoLoss(**how), z), value_and_gradient(lightly.KoLeoLoss(**how), z), rtol=1e-6, atol=1e-9
    )


def test_float32_under_autocast_where_lightly_finds_other_neighbours(lightly):
    """lightly's matrix of cosines is bfloat16 there: of 256 rows that lie close together it finds other neighbours."""
    z = torch.ones(256, 32) + 0.1 * rows((256, 32))["z"]
    truth = eager(z.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = koleo(z), lightly.KoLeoLoss()(z)
    assert (ours - truth).abs() < 1e-5 and (theirs - truth).abs() > 0.05


def test_opposite_rows_are_each_others_neighbours():
    """Where the diagonal is set to -1, as in DINOv2 and DINOv3, the first of two opposite rows finds itself, at distance 0."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo(z).item() == pytest.approx(-torch.tensor(2.0).log().item())
    cosines = (z @ z.T).fill_diagonal_(-1.0)
    assert cosines.argmax(1).tolist() == [0, 0]  # the first row finds itself


@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("topk, size", [(1, None), (3, None), (1, 6), (2, 3)])
def test_neighbours_in_blocks_and_groups(topk, size, elements, monkeypatch):
    for module in (neighbours, limits):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    z = rows((12, 5), torch.float64)["z"]
    how = {"topk": topk, "group_size": size}
    torch.testing.assert_close(value_and_gradient(lambda t: koleo(t, **how), z), value_and_gradient(lambda t: eager(t, **how), z))


def test_flops_are_counted():
    with FlopCounterMode(display=False) as counter:
        koleo(rows((12, 5))["z"], group_size=4)
    assert counter.get_total_flops() == 2 * 12 * 4 * 5


def test_equal_rows_have_a_finite_loss_and_gradient():
    z = torch.ones(4, 3)
    loss, gradient = value_and_gradient(koleo, z)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(
    "error, said, call",
    [
        (ValueError, "z must have more rows than topk = 1, got 1", lambda: koleo(torch.ones(1, 3))),
        (ValueError, "z must have more rows than topk = 4, got 4", lambda: koleo(torch.ones(4, 3), topk=4)),
        (ValueError, "group_size must divide the number of rows 4, got 3", lambda: koleo(torch.ones(4, 3), group_size=3)),
        (ValueError, "group_size must be above topk = 2, got 2", lambda: koleo(torch.ones(4, 3), topk=2, group_size=2)),
        (ValueError, "z must be 2-D", lambda: koleo(torch.ones(4))),
        (ValueError, "at least one row", lambda: koleo(torch.ones(0, 3))),
        (TypeError, "z must be float32", lambda: koleo(torch.ones(4, 3).long())),
        (ValueError, "eps must be at least 0", lambda: koleo(torch.ones(4, 3), eps=-1.0)),
        (ValueError, "p must be at least 1", lambda: koleo(torch.ones(4, 3), p=0.5)),
        (TypeError, "gather_distributed must be True or False", lambda: KoLeoLoss(gather_distributed=1)),
        (ValueError, "group_size must be in", lambda: KoLeoLoss(group_size=1)),
    ],
)
def test_refusals(error, said, call):
    with pytest.raises(error, match=said):
        call()
