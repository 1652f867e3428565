"""The kernels of ``sigreg`` and ``unit_columns`` in Triton's interpreter, against float64 and plain PyTorch."""

import pytest
import torch
import triton

from fastssl.kernels import sigreg as kernels
from fastssl.kernels import unit_columns as columns
from fastssl.reference import sigreg as reference
from fastssl.reference import unit_columns as columns_reference
from fastssl.testing.compare import assert_no_worse, relative_error
from tests.without_gpu.interpreted.common import BF16, F16, F32
from tests.without_gpu.interpreted.fixtures import INTERPRETED


def make(shape, slices, dtype=F32, size=1.0):
    gen = torch.Generator().manual_seed(0)
    z = size * torch.randn(shape, generator=gen)
    directions = torch.nn.functional.normalize(torch.randn(shape[-1], slices, generator=gen), dim=0)
    return z.to(dtype), directions.to(dtype)


def check(z, directions, t_max, knots, total=None):
    samples = z.shape[1] if total is None else 1
    grad = torch.tensor(0.7)

    def run(module, z, directions):
        sums = module.sigreg_sums(z, directions, t_max, knots)
        loss = module.sigreg_loss(sums, total, samples, t_max)
        return sums, loss, module.sigreg_bwd(grad.to(sums.dtype), sums, total, z, directions, samples, t_max)

    found, plain = run(kernels, z, directions), run(reference, z, directions)
    truth = run(reference, z.double(), directions.double())
    for name, ours, eager, true in zip(("sums", "loss", "dz"), found, plain, truth, strict=True):
        assert ours.dtype == eager.dtype and ours.shape == eager.shape
        assert_no_worse(name, ours, eager, true, z.dtype if name == "dz" else F32)


# One sample, ragged tiles, several views; one knot, fewer and more than a program keeps; a width that is cut.
SHAPES = [((1, 1, 1), 1, 2), ((2, 37, 20), 35, 17), ((1, 5, 70), 3, 40), ((3, 18, 130), 16, 6)]


@pytest.mark.parametrize("shape, slices, knots", SHAPES, ids=str)
def test_sums_loss_and_gradient(shape, slices, knots):
    check(*make(shape, slices), 3.0, knots)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_sixteen_bits(dtype):
    if INTERPRETED and dtype == BF16:
        pytest.skip("the interpreter truncates to bfloat16 where a GPU rounds")
    check(*make((2, 20, 24), 35, dtype), 3.0, 17)


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_are_added_up(parts, monkeypatch):
    """Of the samples in the forward, of the directions in the backward, the last of them shorter; N is a tensor."""

    def length(programs, items, block, num_sms):
        each = triton.cdiv(triton.cdiv(items, block), parts) * block
        return triton.cdiv(items, each), each

    monkeypatch.setattr(kernels, "part_length", length)
    check(*make((1, 50, 5), 70), 3.0, 4, torch.tensor(120.0))


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_a_large_projection_has_the_right_phase(size):
    z, one = (size * torch.linspace(0.1, 1.0, 40)).view(1, 40, 1), torch.ones(1, 1)
    for knots in (17, 20):
        sums = kernels.sigreg_sums(z, one, 3.0, knots)
        assert relative_error(sums, reference.sigreg_sums(z.double(), one.double(), 3.0, knots)) < 3e-6


@pytest.mark.parametrize("size", [1e15, 1e18, 3e37])
def test_a_projection_without_a_phase_has_finite_sums(size):
    z = size * torch.linspace(1.0, 2.0, 40).view(1, 40, 1)
    sums = kernels.sigreg_sums(z, torch.ones(1, 1), 3.0, 17)
    assert sums.abs().max() <= 40 * (1 + 1e-5)


def test_what_is_not_finite_stays_so():
    z, directions = make((1, 20, 4), 5)
    z[0, 3, 1] = torch.inf
    assert kernels.sigreg_loss(kernels.sigreg_sums(z, directions, 3.0, 17), None, 20, 3.0).isnan()


@pytest.mark.parametrize("seed, width, count", [(5, 6, 35), (-7, 4, 3), (2**60 + 5, 1, 40), (9, 299, 9)])
def test_unit_columns(seed, width, count):
    made = torch.tensor(seed)
    truth = columns_reference.unit_columns(made, width, count, torch.float64)
    torch.testing.assert_close(columns.unit_columns(made, width, count, F32).double(), truth, rtol=0, atol=1e-6)
