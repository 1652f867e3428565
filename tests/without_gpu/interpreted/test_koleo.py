"""The kernels of ``koleo`` in Triton's interpreter, against float64 and plain PyTorch."""

import pytest
import torch

from fastssl.kernels import koleo as kernels
from fastssl.reference import koleo as reference
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.common import BF16, F16, F32

EPS = 1e-3

#: (rows, width, neighbours, size of a group): two rows, several rows of a program, a ragged width, and rows that no program holds.
SHAPES = [(2, 1, 1, 2), (12, 20, 2, 4), (9, 300, 3, 9), (4, 4100, 1, 4)]


def arguments(rows, width, topk, size, dtype):
    gen = torch.Generator().manual_seed(3)
    z = torch.randn(rows, width, generator=gen).to(dtype)
    z[rows - 1] = 0  # a clamped row
    shift = torch.randint(1, size, (rows, topk), generator=gen)
    place = torch.arange(rows)[:, None]
    return z, place // size * size + (place + shift) % size


def wide(*given):
    return tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given)


def compare(names, dtypes, kernel, plain, *given):
    ours, eager, truth = (call(*given) for call in (kernel, plain, lambda *a: plain(*wide(*a))))
    for name, dtype, *three in zip(names, dtypes, ours, eager, truth, strict=True):
        assert three[0].dtype == dtype and three[0].shape == three[1].shape
        assert_no_worse(name, *three, dtype)
    return eager


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_terms_and_gradients(shape, dtype):
    z, ids = arguments(*shape, dtype)
    x, norm = compare(("x", "norm"), (F32, F32), kernels.koleo_rows, reference.koleo_rows, z, EPS)
    _, distance = compare(("terms", "distance"), (F32, F32), kernels.koleo_fwd, reference.koleo_fwd, x, ids, EPS)
    for dterms in (torch.ones(1, 1).expand(ids.shape), torch.linspace(0.5, 1.5, ids.numel()).view(ids.shape)):
        for of, last in ((norm, dtype), (None, F32)):
            ours = kernels.koleo_bwd(dterms, x, ids, distance, of, EPS, shape[3], last)
            eager = reference.koleo_bwd(dterms, x, ids, distance, of, EPS, shape[3], last)
            truth = reference.koleo_bwd(*wide(dterms, x, ids, distance, of), EPS, shape[3], torch.float64)
            assert ours.dtype == last
            live = slice(None) if of is None else slice(0, -1)  # the clamped row is divided by eps
            assert_no_worse("gradient", ours[live], eager[live], truth[live], last)
            torch.testing.assert_close(ours[-1], eager[-1])


def test_strided_rows_are_read_as_they_lie():
    z, _ = arguments(5, 20, 1, 5, F32)
    spread = torch.empty(5, 3, 20)
    spread[:, 1] = z
    for ours, plain in zip(kernels.koleo_rows(spread[:, 1], EPS), kernels.koleo_rows(z, EPS), strict=True):
        assert torch.equal(ours, plain)


def test_a_row_that_is_the_neighbour_of_many_is_found_in_all_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "IDS", 4)
    x, _ = reference.koleo_rows(arguments(13, 7, 1, 13, F32)[0], EPS)
    ids = torch.full((13, 1), 2)
    ids[2] = 5
    distance = reference.koleo_fwd(x, ids, EPS)[1]
    given = torch.ones(13, 1), x, ids, distance, None, EPS, 13, F32
    torch.testing.assert_close(kernels.koleo_bwd(*given), reference.koleo_bwd(*given))


def test_rows_that_have_no_neighbours_of_their_own():
    """With given neighbours, the rows of x are followed by them: each gets the gradient of one term."""
    gen = torch.Generator().manual_seed(0)
    x, ids = torch.randn(12, 6, generator=gen), torch.arange(4, 12).view(4, 2)
    distance = reference.koleo_fwd(x, ids, EPS)[1]
    given = torch.ones(4, 2), x, ids, distance, None, EPS, 12, F32
    found = kernels.koleo_bwd(*given)
    torch.testing.assert_close(found, reference.koleo_bwd(*given))
    torch.testing.assert_close(found[:4], -found[4:].view(4, 2, 6).sum(1))


def test_equal_rows_without_eps_have_a_gradient_of_0():
    x, ids = torch.ones(2, 3), torch.tensor([[1], [0]])
    terms, distance = kernels.koleo_fwd(x, ids, 0.0)
    assert terms.isposinf().all() and not kernels.koleo_bwd(torch.ones(2, 1), x, ids, distance, None, 0.0, 2, F32).any()


@pytest.mark.parametrize("eps", [1e-8, 1e-20])
def test_what_two_equal_rows_give_each_other_cancels_and_leaves_all_digits_of_the_rest(eps):
    gen = torch.Generator().manual_seed(0)
    x, _ = reference.koleo_rows(torch.randn(4, 9, generator=gen), eps)
    x[1] = x[0]
    ids, dterms = torch.tensor([[1], [0], [0], [2]]), torch.tensor([[1.0], [1.0], [0.5], [0.25]])
    distance = reference.koleo_fwd(x, ids, eps)[1]
    without = dterms * torch.tensor([[0.0], [0.0], [1.0], [1.0]])  # the terms of the two, which cancel
    wanted = reference.koleo_bwd(*wide(without, x, ids, distance), None, eps, 4, torch.float64)
    for backward in (kernels.koleo_bwd, reference.koleo_bwd):
        found = backward(dterms, x, ids, distance, None, eps, 4, F32)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)


def test_an_id_out_of_range_gives_nan_and_reads_nothing():
    x, ids = torch.ones(3, 3), torch.tensor([[1], [3], [-1]])
    terms, distance = kernels.koleo_fwd(x, ids, 1.0)
    assert terms.isnan().flatten().tolist() == [False, True, True]
    assert kernels.koleo_bwd(torch.ones(3, 1), x, ids, distance, None, 1.0, 3, F32)[1].isfinite().all()
