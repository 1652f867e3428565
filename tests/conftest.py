import pytest
import torch

from fastssl.ops._register import _C


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=_C.isas() if _C else ["reference"])
def isa(request):
    """Every instruction set of this machine in turn; the widest is back in use afterwards."""
    if _C is None:
        yield request.param
        return
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(_C.isas()[-1])


@pytest.fixture
def poisoned():
    """Memory that an op allocates and does not write is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
