import math
import os
import signal

import pytest
import torch

from fastssl.ops._register import _C
from fastssl.testing import compare, inputs
from tests.support import shared_folders

_FLOOR = compare.FLOOR[torch.float32]
_SEED = int(os.environ.get("FASTSSL_TEST_SEED", "0"))  # other random inputs: tests/machines.py
inputs.SEED = 1000 * _SEED


def pytest_addoption(parser):
    words = "C++ products move each logit by up to one unit in the last place, other ones in the backward: the unluckiest BLAS"
    parser.addoption("--unlucky", action="store_true", help=words)


def pytest_configure(config):
    config.pluginmanager.register(shared_folders)  # here, since pytest asks no conftest.py about fixtures of the session
    for name, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(name) is signal.SIG_IGN:  # a shell starts what runs in the background so, nohup what outlives it
            signal.signal(name, usual)
    config.addinivalue_line("markers", "lucky: wants two products to have the same bits; left out with --unlucky")
    config.addinivalue_line("markers", "torch_fuses: wants torch to fuse multiplications and additions; left out where it cannot")
    if config.getoption("--unlucky"):
        _be_unlucky(True)


def _be_unlucky(on: bool) -> None:
    """A logit below 16 in size, as in the table of cases, then has a unit of 2^-19 in base 2: a weight may be off by ln(2) 2^-19 in
    the forward and again in the backward, and a gradient is the difference of two sums of weights."""
    _C.set_unlucky_products(on)
    compare.FLOOR[torch.float32] = _FLOOR + 4 * math.log(2) * 2.0**-19 * on


#: Files that take longest, minutes in all: they begin, so that no process ends long after the others.
LONGEST = (
    "test_host.py", "test_compile.py", "test_ops.py", "test_train_momentum.py", "test_masking.py", "test_train_masked.py",
    "test_image.py", "test_train.py", "test_gpu_cases.py", "test_rehearsal.py", "test_steps.py", "test_text.py", "test_tune.py",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    left_out = {"lucky": "products of forward and backward have other bits"} if config.getoption("--unlucky") else {}
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        left_out["torch_fuses"] = "torch rounds a multiplication and an addition apart, and our kernels fuse them"
    for item in items:
        for marker, reason in left_out.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(_SEED)


@pytest.fixture(params=_C.isas() if _C else ["reference"])
def isa(request):
    """Every instruction set of this machine in turn; the widest is back in use afterwards."""
    if _C is None:
        yield request.param
        return
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(_C.isas()[-1])


@pytest.fixture(params=["blas", "unlucky"])
def products(request):
    """The machine's matrix products, and products whose last bits depend on the tile, the order of the operands and the pass."""
    if _C is None:
        pytest.skip("no C++ kernels")
    before = request.config.getoption("--unlucky")
    _be_unlucky(before or request.param == "unlucky")
    yield request.param
    _be_unlucky(before)


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
