"""Fixtures of the GPU tests, and the tests that are skipped where ``rehearse.py`` runs them without a GPU."""

import os
import sys

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products then have equal bits on every stream
REHEARSING = "rehearsal" in sys.modules


def pytest_configure(config):
    config.addinivalue_line("markers", "large: needs 8 GB of the GPU or more; run these in one process, after the others")
    config.addinivalue_line("markers", "racecheck: launches kernels of CUDA C++ alone, which racecheck understands")
    config.addinivalue_line("markers", "cuda_only: asks who serves the CUDA key, or what its kernels do otherwise than the CPU's")


def pytest_collection_modifyitems(items):
    for item in items:
        if REHEARSING and item.get_closest_marker("cuda_only"):
            item.add_marker(pytest.mark.skip(reason="rehearsal: the CPU answers otherwise"))


@pytest.fixture(autouse=True)
def _give_memory_back(request):
    yield
    if request.node.get_closest_marker("large"):
        torch.cuda.empty_cache()


@pytest.fixture
def on_device():
    """``on_device(size, small)`` is ``size`` on a GPU and ``small`` in the rehearsal, where a CPU must have the memory and the
    time."""
    return lambda size, small: small if REHEARSING else size


@pytest.fixture
def kernels_of():
    """``kernels_of(call)`` is a list of the names of the kernels, copies and fills that a second call launches on the GPU."""

    def names(call):
        call()
        torch.cuda.synchronize()
        if REHEARSING:
            call()
            pytest.skip("rehearsal: there are no kernels to count")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]

    return names
