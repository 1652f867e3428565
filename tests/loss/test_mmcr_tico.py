"""MMCR and TiCo against lightly's, values and gradients; the state of TiCo; what they refuse."""

import copy
import math

import pytest
import torch

from benchmarks.peers import ready_torchvision
from fastssl.functional import mmcr, tico
from fastssl.loss import MMCRLoss, TiCoLoss
from fastssl.testing.latents import rows


@pytest.fixture(scope="module")
def lightly():
    ready_torchvision()
    return pytest.importorskip("lightly.loss")


def value_and_gradients(call, *given):
    given = [t.clone().requires_grad_() for t in given]
    loss = call(*given)
    return [loss.detach(), *torch.autograd.grad(loss, given)]


@pytest.mark.parametrize("shape", [(6, 2, 12), (9, 4, 5), (1, 1, 3)], ids=str)
def test_lightlys_mmcr(lightly, shape):
    views = [rows(shape, torch.float64, seed=seed)["z"] for seed in (0, 1)]
    found, wanted = (value_and_gradients(loss, *views) for loss in (MMCRLoss(0.3), lightly.MMCRLoss(0.3)))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    single = value_and_gradients(MMCRLoss(0.3), *(t.float() for t in views))
    torch.testing.assert_close([t.double() for t in single], wanted, rtol=1e-4, atol=1e-5)


def test_mmcr_of_what_is_not_a_number_is_none():
    z = torch.ones(2, 2, 3)
    z[1, 0, 1] = torch.nan
    assert mmcr(z, torch.ones(2, 2, 3)).isnan()


def test_lightlys_tico_over_three_steps(lightly):
    ours, theirs = TiCoLoss(beta=0.7, rho=3.0), lightly.TiCoLoss(beta=0.7, rho=3.0)
    for step in range(3):
        views = [rows((9, 5), torch.float64, seed=2 * step + seed)["z"] for seed in (0, 1)]
        update = step != 1
        found, wanted = (value_and_gradients(lambda a, b, loss=loss: loss(a, b, update), *views) for loss in (ours, theirs))  # noqa: B023
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours.C, theirs.C)


def test_ticos_covariance_is_state_where_lightlys_is_lost(lightly):
    views = rows((9, 5))["z"], rows((9, 5), seed=1)["z"]
    ours, theirs = TiCoLoss(), lightly.TiCoLoss()
    ours(*views), theirs(*views)
    assert list(theirs.state_dict()) == [] and list(ours.state_dict()) == ["C"]
    resumed = TiCoLoss()
    resumed.load_state_dict(ours.state_dict())
    assert torch.equal(resumed(*views), copy.deepcopy(ours)(*views)) and not torch.equal(resumed(*views), TiCoLoss()(*views))
    assert TiCoLoss().load_state_dict({}) and ours.double().C.dtype == torch.float64


def test_float32_under_autocast(lightly):
    z, other = rows((256, 64))["z"], rows((256, 64), seed=1)["z"]
    truth = tico(z.double(), other.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = tico(z, other)[0], lightly.TiCoLoss()(z, other)
    assert (ours - truth).abs() <= 1e-6 * truth < (theirs - truth).abs()


@pytest.mark.parametrize(
    "error, said, call",
    [
        (ValueError, "mmcr: online must have shape", lambda: mmcr(torch.ones(3, 4), torch.ones(3, 4))),
        (ValueError, "mmcr: online and momentum must have the same shape", lambda: mmcr(torch.ones(3, 1, 4), torch.ones(3, 2, 4))),
        (TypeError, "mmcr: momentum must be a tensor", lambda: mmcr(torch.ones(3, 1, 4), None)),
        (ValueError, "mmcr: lambda_param must be at least 0", lambda: mmcr(*(torch.ones(3, 1, 4),) * 2, -1.0)),
        (ValueError, "MMCRLoss: lmda must be at least 0", lambda: MMCRLoss(-1.0)),
        (ValueError, "tico: z_a must have at least 2 rows", lambda: tico(torch.ones(1, 4), torch.ones(1, 4))),
        (ValueError, "tico: z_a and z_b must have the same shape", lambda: tico(torch.ones(2, 4), torch.ones(3, 4))),
        (ValueError, r"covariance must have shape \(4, 4\)", lambda: tico(*(torch.ones(2, 4),) * 2, torch.ones(4, 3))),
        (ValueError, r"tico: beta must be in \[0, 1\]", lambda: tico(*(torch.ones(2, 4),) * 2, beta=1.5)),
        (ValueError, "tico: rho must be finite", lambda: tico(*(torch.ones(2, 4),) * 2, rho=math.nan)),
        (ValueError, r"TiCoLoss: beta must be in \[0, 1\]", lambda: TiCoLoss(beta=2)),
        (TypeError, "update_covariance_matrix must be True or False", lambda: TiCoLoss()(*(torch.ones(2, 4),) * 2, 1)),
    ],
)
def test_refusals(error, said, call):
    with pytest.raises(error, match=said):
        call()


def test_one_graph():
    """A compiled TiCo keeps its covariance, too."""
    views = rows((6, 2, 5))["z"], rows((6, 2, 5), seed=1)["z"]
    compiled = torch.compile(mmcr, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled, *views), value_and_gradients(mmcr, *views))
    plain, criterion = TiCoLoss(), TiCoLoss()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        pair = [t[:, 0].contiguous() for t in views]
        torch.testing.assert_close(value_and_gradients(compiled, *pair), value_and_gradients(plain, *pair))
    torch.testing.assert_close(criterion.C, plain.C)
