"""``softplus_sum``: value and gradients against plain PyTorch in float64, edges, the op's contract, digits of a small loss."""

import pytest
import torch
from torch.nn import functional as F

from fastssl.functional import nt_xent
from fastssl.loss.parts.reductions import positive_loss
from fastssl.ops.softplus_sum import softplus_sum

SIZES = [(1, 1), (2, 1), (14, 7), (12, 4), (4097, 4097), (9000, 4500)]


def given(rows, count, dtype=torch.float64):
    gen = torch.Generator().manual_seed(0)
    return (30 * torch.randn(rows, generator=gen)).to(dtype), (9 * torch.randn(count, generator=gen)).to(dtype)


def plain(lse, positive, scale, mean):
    terms = F.softplus(lse.view(-1, len(positive)) - scale * positive, threshold=40.0)
    return terms.mean() if mean else terms.sum()


@pytest.mark.parametrize(("rows", "count"), SIZES)
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("scale", [2.0, -0.3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value_and_gradients(rows, count, mean, scale, dtype):
    lse, positive = (t.requires_grad_() for t in given(rows, count, dtype))
    wide = [t.detach().double().requires_grad_() for t in (lse, positive)]
    ours, want = softplus_sum(lse, positive, scale, mean), plain(*wide, scale, mean)
    assert ours.dtype == dtype and ours.shape == ()
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours.double(), want, rtol=rtol, atol=0)
    for got, expected in zip(torch.autograd.grad(0.7 * ours, (lse, positive)), torch.autograd.grad(0.7 * want, wide), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def test_rows_without_negatives_add_nothing_and_nan_shows():
    lse = torch.tensor([-torch.inf, 1.0, -torch.inf, -torch.inf], requires_grad=True)
    positive = torch.tensor([0.5, -1.0], requires_grad=True)
    total = softplus_sum(lse, positive, 1.0, False)
    torch.testing.assert_close(total, F.softplus(torch.tensor(2.0)))
    total.backward()
    assert torch.equal(lse.grad != 0, torch.tensor([False, True, False, False])) and positive.grad[0] == 0
    assert softplus_sum(torch.tensor([1.0, torch.nan]), torch.tensor([0.0, 0.0]), 1.0, True).isnan()
    assert softplus_sum(torch.tensor([torch.inf]), torch.tensor([0.0]), 1.0, True) == torch.inf


def test_contract():
    for dtype in (torch.float32, torch.float64):
        lse, positive = given(12, 4, dtype)
        arguments = (lse, positive, 1.5, True)
        torch.library.opcheck(torch.ops.fastssl.softplus_sum_fwd.default, arguments)
        torch.library.opcheck(torch.ops.fastssl.softplus_sum_bwd.default, (torch.ones((), dtype=dtype), *arguments))
    lse, positive = (t.requires_grad_() for t in given(12, 4))
    assert torch.autograd.gradcheck(lambda a, b: softplus_sum(a, b, 0.1, True), (lse, positive))
    assert torch.equal(*(softplus_sum(lse, positive, 0.1, True) for _ in range(2)))
    strided = torch.stack([lse.detach()] * 2, 1)[:, 0]
    assert not strided.is_contiguous() and torch.equal(
        softplus_sum(strided, positive, 0.1, True), softplus_sum(lse, positive, 0.1, True)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [3.0, torch.tensor(3.0), torch.tensor([3.0], dtype=torch.float64)], ids=["float", "0-d", "1-d"])
def test_a_reduced_loss_is_the_reduction_of_its_rows(scale, reduction):
    lse, positive = (t.float() for t in given(12, 4))
    rows = positive_loss("nt_xent", lse, positive, scale, "none")
    loss = positive_loss("nt_xent", lse, positive, scale, reduction)
    assert rows.shape == (12,) and loss.dtype == torch.float32
    torch.testing.assert_close(loss, getattr(rows, reduction)().float())


def test_a_small_loss_keeps_its_digits():
    z = F.normalize(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    loss, truth = (float(nt_xent(t, t, 0.05)) for t in (z, z.double()))
    assert truth < 1e-4 and abs(loss - truth) < 1e-4 * truth
