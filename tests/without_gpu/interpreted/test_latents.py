"""The kernels of ``masked_latent`` in Triton's interpreter, against float64 and plain PyTorch."""

import pytest
import torch

from fastssl.kernels import masked_latent as kernels
from fastssl.reference import masked_latent as reference
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.common import BF16, F16, F32

#: (pred (P, K, D), (N, L), D): one row, several rows of a program, a ragged width, and one beyond what a program holds.
SHAPES = [((1, 1, 1), (1, 1)), ((4, 3, 20), (2, 5)), ((3, 5, 300), (3, 7)), ((2, 2, 4100), (1, 4))]


def arguments(shape, target, dtype, loss="smooth_l1", value=0.5, normalize=True, weights=False, mean=True):
    gen = torch.Generator().manual_seed(3)
    p, k, d = shape
    pred, h = torch.randn(shape, generator=gen).to(dtype), (2 * torch.randn(*target, d, generator=gen) + 0.5).to(dtype)
    ids = torch.randint(target[1], (p, k), generator=gen)
    weight = torch.randint(3, (p, k), generator=gen) / 2.0 if weights else None
    return pred, h, ids, weight, loss, value, normalize, 1e-5, mean


def wide(given):
    return tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given)


def check(given, dtype):
    for grad in (torch.tensor(0.7), torch.linspace(0.5, 1.5, given[2].numel()).view_as(given[2])):
        found = (*kernels.masked_latent_fwd(*given), kernels.masked_latent_bwd(grad, *given))
        plain = (*reference.masked_latent_fwd(*given), reference.masked_latent_bwd(grad, *given))
        truth = (*reference.masked_latent_fwd(*wide(given)), reference.masked_latent_bwd(grad.double(), *wide(given)))
        for name, ours, eager, true in zip(("loss", "rows", "dpred"), found, plain, truth, strict=True):
            assert ours.dtype == eager.dtype
            assert_no_worse(name, ours, eager, true, F32 if name != "dpred" else dtype)
    loss, dpred = kernels.masked_latent_one_pass(*given)
    assert torch.equal(loss, found[0]) and torch.equal(dpred, kernels.masked_latent_bwd(torch.tensor(1.0), *given))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape, target", SHAPES, ids=str)
def test_rows(shape, target, dtype):
    check(arguments(shape, target, dtype), dtype)


@pytest.mark.parametrize("loss, value", [("l1", 1.0), ("l2", 1.0), ("power", 1.5), ("smooth_l1", 2.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_losses(loss, value, normalize):
    check(arguments((4, 3, 20), (2, 5), F32, loss, value, normalize, weights=True, mean=False), F32)


def test_all_tokens_without_ids_in_strided_rows():
    pred, h, *_, mean = arguments((4, 5, 20), (2, 7), F32)
    given = (pred.transpose(0, 1).contiguous().transpose(0, 1), h[:, 1:6], None, None, "l1", 1.0, True, 1e-5, mean)
    for ours, plain in zip(kernels.masked_latent_one_pass(*given), reference.masked_latent_one_pass(*given), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


def test_an_id_out_of_range_counts_as_weight_0_and_nothing_of_weight_0_is_read():
    pred, h, ids, weight, *how = arguments((4, 3, 20), (2, 5), F32, weights=True)
    ids[0, 0], ids[1, 1], weight[2, 2] = 5, -1, 0.0
    pred[0, 0] = pred[1, 1] = pred[2, 2] = torch.nan
    given = (pred, h, ids, weight, *how)
    loss, dpred = kernels.masked_latent_one_pass(*given)
    torch.testing.assert_close((loss, dpred), reference.masked_latent_one_pass(*given), rtol=1e-5, atol=1e-7)
    assert loss.isfinite() and not dpred[[0, 1, 2], [0, 1, 2]].any()
    infinite = kernels.masked_latent_bwd(torch.tensor(torch.inf), *given)
    assert torch.isnan(infinite[[0, 1, 2], [0, 1, 2]]).sum() == 0


def test_what_is_not_a_number_stays_so():
    pred, h, *rest = arguments((4, 3, 20), (2, 5), F32, "smooth_l1")
    pred[1, 2, 3] = torch.nan
    loss, dpred = kernels.masked_latent_one_pass(pred, h, *rest)
    assert loss.isnan() and dpred.isnan().sum() == 1
