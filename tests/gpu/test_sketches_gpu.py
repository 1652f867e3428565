"""SIGReg and random directions on a GPU: what the table of cases does not ask."""

import pytest
import torch

from fastssl.functional import lejepa_loss, sigreg, visreg
from fastssl.ops.unit_columns import unit_columns
from fastssl.testing.compare import relative_error
from tests.gpu.common import no_sync

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_seed_gives_the_directions_of_the_cpu(dtype):
    seed = torch.tensor(2**40 + 7)
    found, wanted = unit_columns(seed.cuda(), 130, 1000, dtype).cpu(), unit_columns(seed, 130, 1000, dtype)
    torch.testing.assert_close(found, wanted, rtol=8e-3 if dtype == torch.bfloat16 else 0, atol=2e-6)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("knots", [2, 17, 40])
def test_phases_of_large_projections(size, knots):
    z, one = (size * torch.linspace(0.1, 1.0, 700, device="cuda"))[:, None], torch.ones(1, 1, device="cuda")
    found = sigreg(z, directions=one, knots=knots)
    assert relative_error(found, sigreg(z.double(), directions=one.double(), knots=knots)) < 2e-6


def test_a_step_on_the_gpu_is_the_seed_and_nothing_waits():
    z = torch.randn(4, 256, 64, device="cuda", requires_grad=True)
    step = torch.tensor(3, device="cuda")
    for call in (sigreg, lejepa_loss, visreg):
        call(z, seed=step, slices=100).backward()
        with no_sync():
            call(z, seed=step, slices=100).backward()
