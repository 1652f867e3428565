import pytest
import torch

from fastssl.ops._register import _C


def pytest_collection_modifyitems(items):
    """Files whose few tests take minutes (the interpreter, offline compilation) begin: no process then ends long after the rest."""
    items.sort(key=lambda item: not item.path.name.startswith("test_triton"))


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


@pytest.fixture(scope="module")
def one_thread():
    """OpenMP threads that spin while other processes want the same cores cost minutes; training in tests is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
