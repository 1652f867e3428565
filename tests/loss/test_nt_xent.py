"""NT-Xent and DCL, compared with lightly, at the extremes of the temperature, and as modules."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import dcl, nt_xent
from fastssl.loss import DCLLoss, DCLWLoss, NTXentLoss
from fastssl.loss.nt_xent import pair_terms
from fastssl.loss.parts.ids import pair_ids
from fastssl.loss.parts.reductions import positive_loss
from fastssl.testing import contrastive
from fastssl.testing.compare import assert_no_worse
from fastssl.testing.inputs import two_views


def views(b=40, d=24, dtype=torch.float32, **kwargs):
    return [t.requires_grad_() for t in two_views((b, d), dtype, **kwargs).values()]


def value_and_grads(loss, z0, z1):
    out = loss(z0, z1)
    return [out.detach(), *torch.autograd.grad(out, (z0, z1))]


@pytest.fixture(scope="module")
def lightly_loss():
    pytest.importorskip("lightly", reason="lightly is not installed")
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    return pytest.importorskip("lightly.loss")


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.07, -1.0])
@pytest.mark.parametrize("shape", [(40, 24), (7, 1), (1, 8), (2, 2), (130, 128)])
def test_ntxentloss_is_lightlys(lightly_loss, temperature, shape):
    got = value_and_grads(NTXentLoss(temperature), *views(*shape))
    want = value_and_grads(lightly_loss.NTXentLoss(temperature), *views(*shape))
    limit = max(1e-6, 4 * 2.0**-24 / temperature**2 / shape[0])  # logits round at 1 / temperature, and gradients multiply by it
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


@pytest.mark.parametrize("name, kwargs", [("DCLLoss", {"temperature": 0.1}), ("DCLWLoss", {"temperature": 0.2, "sigma": 0.4})])
def test_dcl_is_lightlys(lightly_loss, name, kwargs):
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        rows = [t.detach().to(dtype).requires_grad_() for t in views()]
        got = value_and_grads({"DCLLoss": DCLLoss, "DCLWLoss": DCLWLoss}[name](**kwargs), *rows)
        want = value_and_grads(getattr(lightly_loss, name)(**kwargs), *rows)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.05, 0.1, 1.0])
@pytest.mark.parametrize("ours, eager", [(nt_xent, contrastive.nt_xent), (dcl, contrastive.dcl)])
def test_every_temperature_and_dtype(ours, eager, temperature, dtype):
    def run(f, as_dtype):
        z0, z1 = (t.detach().to(as_dtype).requires_grad_() for t in views(70, 24, dtype))
        return value_and_grads(lambda a, b: f(a, b, temperature), z0, z1)

    for name, got, theirs, truth in zip(
        ("loss", "dz0", "dz1"), run(ours, dtype), run(eager, dtype), run(eager, torch.float64), strict=True
    ):
        size = 1.0 / temperature  # the loss is a difference of logits of that size, made of rows in this dtype
        if name != "loss":  # the rounding of a logit in float32 changes its exponential, and so every weight of the gradient
            size *= float(truth.double().norm()) * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps / 2
        assert_no_worse(name, got, theirs, truth, dtype, size)


def test_a_loss_of_a_thousandth_keeps_its_digits():
    """A log-sum-exp minus the positive loses the digits: eager PyTorch in float32 is a thousand times further off."""
    z0, z1 = views(512, 64, noise=0.02)
    truth = contrastive.nt_xent(z0.double(), z1.double(), 0.05)
    assert 1e-6 < truth < 5e-3
    assert abs(nt_xent(z0, z1, 0.05).double() - truth) / truth < 1e-5


@pytest.mark.parametrize("size", [1e-3, 1.0, 20.0])
def test_rows_as_they_are(size):
    z0, z1 = (t.detach().mul(size).requires_grad_() for t in views(30, 16))

    def eager(a, b):
        s = torch.cat([a, b]) @ torch.cat([a, b]).T / 0.5
        s = s.masked_fill(torch.eye(len(s), dtype=torch.bool), -math.inf)
        return F.cross_entropy(s, torch.arange(len(s)).roll(len(a)))

    truth = value_and_grads(eager, *(t.detach().double().requires_grad_() for t in (z0, z1)))
    theirs = value_and_grads(eager, z0, z1)
    got = value_and_grads(lambda a, b: nt_xent(a, b, normalize=False), z0, z1)
    for name, ours, e, t in zip(("loss", "dz0", "dz1"), got, theirs, truth, strict=True):
        assert_no_worse(name, ours, e, t, torch.float32)


def test_a_zero_row_is_what_normalize_makes_of_it():
    z0, z1 = views(6, 4)
    z0.data[2] = 0
    got, want = (value_and_grads(f, z0, z1) for f in (nt_xent, contrastive.nt_xent))
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss, eager", [(nt_xent, contrastive.nt_xent), (dcl, contrastive.dcl)])
def test_a_learned_temperature_has_its_gradient(loss, eager):
    z0, z1 = views()
    got, want = (torch.tensor(0.2, requires_grad=True) for _ in range(2))
    loss(z0, z1, got).backward()
    eager(z0.double(), z1.double(), want.double()).backward()
    torch.testing.assert_close(got.grad, want.grad, rtol=1e-6, atol=1e-6)


def test_reductions():
    z0, z1 = views()
    rows = nt_xent(z0, z1, reduction="none")
    assert rows.shape == (80,)
    torch.testing.assert_close(nt_xent(z0, z1, reduction="sum"), rows.sum())
    torch.testing.assert_close(nt_xent(z0, z1), rows.mean())


def test_only_one_view_needs_a_gradient():
    z0, z1 = views()
    both = value_and_grads(nt_xent, z0, z1)
    (alone,) = torch.autograd.grad(nt_xent(z0, z1.detach()), z0)
    torch.testing.assert_close(alone, both[1])


def test_modules_copy_pickle_and_carry_a_learned_temperature():
    loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.3)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    z0, z1 = views()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(z0, z1), loss(z0, z1))


def test_large_batch_needs_no_matrix():
    """At B = 16384 the matrix alone would take 4 GiB."""
    z0, z1 = views(16384, 8)
    loss = nt_xent(z0, z1)
    loss.backward()
    assert loss.isfinite() and z0.grad.isfinite().all()


Z = torch.randn(4, 3)
BAD = {
    "shapes": (
        ValueError,
        r"nt_xent: z0 and z1 must have the same shape \(B, D\), got \(4, 3\) and \(4, 2\)",
        lambda: nt_xent(Z, Z[:, :2]),
    ),
    "empty batch": (ValueError, r"z0 must have at least one row.*\(0, 3\)", lambda: nt_xent(Z[:0], Z[:0])),
    "integers": (TypeError, "z0 must be float32.*got torch.int64", lambda: nt_xent(Z.long(), Z.long())),
    "temperature 0": (ValueError, "nt_xent: temperature must be finite and not 0, got 0", lambda: nt_xent(Z, Z, 0)),
    "temperature NaN": (ValueError, "temperature must be finite and not 0, got nan", lambda: nt_xent(Z, Z, math.nan)),
    "temperature inf": (ValueError, "temperature must be finite and not 0, got inf", lambda: nt_xent(Z, Z, math.inf)),
    "temperature tensor 0": (ValueError, "temperature must be finite and not 0, got 0", lambda: nt_xent(Z, Z, torch.tensor(0.0))),
    "temperature text": (TypeError, "temperature must be a number.*got str", lambda: nt_xent(Z, Z, "0.5")),
    "devices": (ValueError, "z0 and z1 must be on the same device, got cpu and meta", lambda: nt_xent(Z, Z.to("meta"))),
    "dtypes": (TypeError, "z0 and z1 must have the same dtype", lambda: nt_xent(Z, Z.double())),
    "reduction": (ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'", lambda: nt_xent(Z, Z, reduction="avg")),
    "group": (TypeError, "group must be a process group, .*Ranks or None, got object", lambda: nt_xent(Z, Z, group=object())),
    "dcl of one pair": (ValueError, "dcl: z0 must have at least 2 rows", lambda: dcl(Z[:1], Z[:1])),
    "dcl shapes": (ValueError, "dcl: z0 and z1 must have the same shape", lambda: dcl(Z, Z[:2])),
    "module temperature": (ValueError, "NTXentLoss: temperature must be at least 1e-8", lambda: NTXentLoss(1e-9)),
    "module NaN": (ValueError, "temperature must be finite and not 0, got nan", lambda: NTXentLoss(math.nan)(Z, Z)),
    "memory bank": (ValueError, "memory_bank_size must be 0, K or", lambda: NTXentLoss(memory_bank_size=-1)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_message(name):
    error, words, call = BAD[name]
    with pytest.raises(error, match=words):
        call()


def test_public_names():
    assert fastssl.nt_xent is fastssl.functional.nt_xent and set(fastssl.functional.__all__) <= set(dir(fastssl.functional))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_node_of_the_graph_has_the_bits_of_three(dtype, reduction):
    def three(z0, z1):
        _, lse, dot, scale = pair_terms("nt_xent", z0, z1, 0.3, True, None)
        return positive_loss("nt_xent", lse, dot, scale, reduction)

    found = value_and_grads(lambda z0, z1: nt_xent(z0, z1, 0.3, reduction=reduction), *views(dtype=dtype))
    assert all(map(torch.equal, found, value_and_grads(three, *views(dtype=dtype))))


def test_one_side_alone_may_want_a_gradient():
    z0, z1 = (t.detach() for t in views())
    both = value_and_grads(nt_xent, *views())
    for side in (0, 1):
        rows = [t.clone().requires_grad_(k == side) for k, t in enumerate((z0, z1))]
        (grad,) = torch.autograd.grad(nt_xent(*rows), rows[side])
        assert torch.equal(grad, both[1 + side])


def test_ids_of_a_batch_are_kept_and_none_are_those_of_inference_mode():
    x = torch.ones(77, 2)
    with torch.inference_mode():
        assert pair_ids(x).is_inference()
        value = nt_xent(x, x + 1)
    rows = [x.clone().requires_grad_(), (x + 1).requires_grad_()]
    loss = nt_xent(*rows)
    loss.backward()
    assert torch.equal(loss.detach(), value)
    ids = pair_ids(x)
    assert pair_ids(x) is ids and torch.equal(ids, torch.arange(77, dtype=torch.int32).repeat(2))
    assert pair_ids(x[:5]).tolist() == [0, 1, 2, 3, 4] * 2
