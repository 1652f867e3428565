"""``negative_cosine`` and ``byol_loss``: against torch and lightly, zero rows, detached targets, reductions, modules.

Value and gradients in every dtype, layouts, compilation, second derivatives: ``test_ops.py`` by the rows of the case table.
"""

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import byol_loss, negative_cosine
from fastssl.loss import BYOLLoss, NegativeCosineSimilarity
from fastssl.testing.inputs import two_views


def value_and_grads(loss, p, z):
    p, z = (t.detach().clone().requires_grad_() for t in (p, z))
    out = loss(p, z)
    return [out.detach(), *torch.autograd.grad(out, (p, z))]


def views(shape=(40, 24), dtype=torch.float32):
    return tuple(two_views(shape, dtype).values())


@pytest.mark.parametrize("shape", [(40, 24), (1, 8), (7, 1), (130, 257)])
def test_negative_cosine_is_torchs(shape):
    got = value_and_grads(negative_cosine, *views(shape))
    want = value_and_grads(lambda p, z: -F.cosine_similarity(p, z, dim=1).mean(), *views(shape))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 24), (1, 8), (7, 1)])
def test_the_module_is_lightlys(shape):
    pytest.importorskip("lightly", reason="lightly is not installed")
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    lightly_loss = pytest.importorskip("lightly.loss")
    got = value_and_grads(NegativeCosineSimilarity(), *views(shape))
    want = value_and_grads(lightly_loss.NegativeCosineSimilarity(), *views(shape))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((4, 6, 8), (4, 6, 8)), {"dim": 2}),
        (((4, 6, 8), (4, 6, 8)), {}),
        (((4, 6, 8), (4, 6, 8)), {"dim": -3}),
        (((3, 5, 2, 4), (5, 1, 4)), {"dim": 1}),
        (((6, 8), (1, 8)), {"dim": -1}),
        (((6, 8), (6, 8)), {"dim": 0, "eps": 2.5}),
        (((6, 8), (6, 8)), {"eps": 2.5}),
        (((8,), (8,)), {"dim": 0}),
    ],
    ids=str,
)
def test_the_module_takes_dim_eps_and_any_shapes_that_broadcast(shapes, options):
    """With eps = 2.5 some norms of eight normal numbers are clamped. torch's gradient ignores the clamp, and ours does not."""
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    got = value_and_grads(NegativeCosineSimilarity(**options), *inputs)
    dim, eps = options.get("dim", 1), options.get("eps", 1e-8)
    theirs = value_and_grads(lambda p, z: -F.cosine_similarity(p, z, dim, eps).mean(), *inputs)

    def clamped(p, z):
        p, z = torch.broadcast_tensors(p, z)
        return -(F.normalize(p, dim=dim, eps=eps) * F.normalize(z, dim=dim, eps=eps)).sum(dim).mean()

    torch.testing.assert_close(got[0], theirs[0], rtol=1e-12, atol=1e-12)
    want = value_and_grads(clamped, *inputs) if "eps" in options else theirs
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_module_takes_two_dtypes_as_torch_does(dtype):
    """Two dtypes are computed in the wider one, while torch takes the norm of bfloat16 in bfloat16."""
    p, z = views((9, 16))
    got = value_and_grads(NegativeCosineSimilarity(), p, z.to(dtype))
    want = value_and_grads(lambda p, z: -F.cosine_similarity(p, z).mean(), p.double(), z.to(dtype).double())
    assert [t.dtype for t in got] == [torch.promote_types(torch.float32, dtype), torch.float32, dtype]
    for ours, exact, like in zip(got, want, (p, p, z.to(dtype)), strict=True):
        torch.testing.assert_close(ours, exact.to(ours.dtype), rtol=4 * torch.finfo(like.dtype).eps, atol=1e-6)


def test_the_module_refuses_by_name():
    x = torch.randn(3, 4)
    for arguments, inputs, error, match in (
        ({"dim": 1.0}, (x, x), TypeError, "dim must be a whole number"),
        ({"eps": -1.0}, (x, x), ValueError, "eps must be at least 0"),
        ({"dim": 2}, (x, x), ValueError, r"x0 must have the dimension dim = 2, got shape \(3, 4\)"),
        ({}, (x, x[:2]), ValueError, r"x0 and x1 must have shapes that broadcast together, got \(3, 4\) and \(2, 4\)"),
        ({}, (x, None), TypeError, "x1 must be a tensor, got NoneType"),
        ({}, (x, x.int()), TypeError, "x1 must be float32, bfloat16, float16 or float64, got torch.int32"),
    ):
        with pytest.raises(error, match=f"NegativeCosineSimilarity: {match}"):
            NegativeCosineSimilarity(**arguments)(*inputs)


def test_byol_loss_is_the_squared_distance_of_unit_rows():
    got = value_and_grads(BYOLLoss(), *views())
    want = value_and_grads(lambda p, z: (F.normalize(p) - F.normalize(z)).square().sum(1).mean(), *views())
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("loss", [negative_cosine, byol_loss])
def test_length_does_not_matter_and_the_result_is_wide(loss, dtype):
    p, z = views((9, 16), dtype)
    scale = 2.0 ** torch.arange(-4, 5)[:, None].to(dtype)
    plain, scaled = (value_and_grads(loss, a, z) for a in (p, p * scale))
    assert plain[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[1] * scale, plain[1])
    assert plain[1].dtype == plain[2].dtype == dtype


@pytest.mark.parametrize("loss, rows", [(negative_cosine, [-1.0, 1.0, 0.0, 0.0]), (byol_loss, [0.0, 4.0, 2.0, 2.0])])
def test_the_ends_of_the_range_and_rows_of_zeros(loss, rows):
    z = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    p = torch.stack([z[0], -2.0 * z[1], torch.zeros(2), torch.zeros(2)])
    torch.testing.assert_close(loss(p, z, reduction="none"), torch.tensor(rows))
    _, dp, dz = value_and_grads(loss, p, z)
    assert dp.isfinite().all() and dz.isfinite().all()
    assert not dp[3].any() and not dz[3].any()


@pytest.mark.parametrize("loss", [negative_cosine, byol_loss])
def test_a_detached_target_gets_no_gradient_and_changes_no_other(loss):
    p, z = (t.requires_grad_() for t in views())
    loss(p, z).backward()
    both, p.grad, z.grad = p.grad, None, None
    loss(p, z.detach()).backward()
    assert z.grad is None and torch.equal(p.grad, both)


@pytest.mark.parametrize("loss", [negative_cosine, byol_loss])
def test_reductions_agree(loss):
    p, z = views((30, 8))
    rows = loss(p, z, reduction="none")
    assert rows.shape == (30,)
    torch.testing.assert_close(loss(p, z), rows.mean())
    torch.testing.assert_close(loss(p, z, reduction="sum"), rows.sum())
